"""torchvision beside a CPU torch: imports work after `install`, in a fresh process, and it is idempotent."""

import subprocess
import sys

import pytest
import torch

CODE = """
from fuse import torchvision_shim
first, second = torchvision_shim.install(), torchvision_shim.install()
assert first == second
import torchvision.transforms.functional
from transformers import CLIPVisionModel
import open_clip
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)


def test_heavy_imports_work() -> None:
    done = run(CODE)
    assert done.returncode == 0, done.stderr[-2000:]


def test_it_is_needed_here_or_not_done() -> None:
    """Where plain `import torchvision` works, the shim keeps its hands off; where it does not, it is what helps."""
    plain = run("import torchvision")
    shim = run("from fuse import torchvision_shim; print(torchvision_shim.install())")
    assert shim.stdout.strip() == str(plain.returncode != 0), plain.stderr[-500:]


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
def test_cuda_builds_are_left_alone() -> None:
    from fuse import torchvision_shim

    assert torchvision_shim.install() is False
