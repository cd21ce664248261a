"""Names of devices: what a person may write, and whether torch finds it here."""

import re

from fuse.errors import MachineError, RecipeError

NAMES = re.compile(r"cpu|cuda(:\d{1,3})?|mps|auto")
HINT = "cpu works everywhere"


def check_device(name: str) -> None:
    """That a model can run on a device of this name, before one is loaded.

    Raises RecipeError for another name, MachineError for a device that is not there.
    """
    if not NAMES.fullmatch(name):
        raise RecipeError(f"device {name!r}: a model runs on cpu, cuda, cuda:N, mps or auto")
    if name.startswith("cuda"):
        gpus(name)
    if name == "mps":
        import torch

        if not torch.backends.mps.is_available():
            raise MachineError(f"device {name!r}: torch finds no such device here", hint=HINT)


def gpus(name: str) -> list[int]:
    """The numbers of the GPUs that "cuda" (every one) or "cuda:1" means. Raises MachineError for one not there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = list(range(count)) if name == "cuda" else [int(name.removeprefix("cuda:"))]
    if not wanted or max(wanted) >= count:
        found = f"{count} GPU{'s' * (count != 1)}" if count else "no GPU"
        raise MachineError(f"device {name!r}: torch finds {found} here", hint=HINT)
    return wanted


def first(name: str) -> str:
    """The one device for a model that is not spread: for "auto" a GPU where there is one."""
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
