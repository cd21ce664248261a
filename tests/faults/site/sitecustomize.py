"""Python imports this at its start where the tests put this folder on PYTHONPATH; `fuse` itself knows nothing of it."""

import os

if "FUSE_TEST_ROOT" in os.environ:
    import faulty

    faulty.install()
