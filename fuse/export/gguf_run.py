"""`python -m fuse.export.gguf_run SCRIPT ...`: a script in this Python, as `python SCRIPT ...` runs it.

`import fuse` makes torchvision importable beside a CPU build of torch, which transformers wants in the script.
"""

import runpy
import sys
from pathlib import Path

import fuse  # noqa: F401 - looks after torchvision

if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
