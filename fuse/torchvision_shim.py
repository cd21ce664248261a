"""Lets `import torchvision` succeed beside a CPU build of torch.

torchvision's wheels link CUDA. Beside a CPU build of torch their extension does not load, `torchvision::nms` is never
registered, and every CLIP or LLaVA class of transformers, timm, open_clip and mergekit fails to import with
`operator torchvision::nms does not exist`. Declaring the schemas of the missing operators first is enough: the rest of
torchvision that those libraries use is Python. The operators themselves stay unusable; nothing here calls them.
"""

import importlib.util
from pathlib import Path

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_library = None  # a torch.library.Library unregisters its operators when it is collected, so it lives here


def install() -> bool:
    """Declare the operators if they are needed; True when they were declared by this or an earlier call.

    Needed means: torch is a CPU build, torchvision is installed, and its extension cannot load.
    Call it before anything imports torchvision. A CUDA build of torch is left alone.
    """
    global _library  # noqa: PLW0603 - set once, and must outlive the call
    if _library is not None:
        return True
    import torch

    if torch.version.cuda or torch.version.hip or not _extension_is_broken(torch):
        return False
    if hasattr(torch.ops.torchvision, _OPERATORS[0]):  # another copy of this file, in a portable folder, was first
        return True
    _library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        _library.define(name + _SCHEMA)
    return True


def _extension_is_broken(torch) -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.origin:
        return False
    extensions = sorted(p for p in Path(spec.origin).parent.glob("_C*") if p.suffix in {".so", ".pyd"})
    if not extensions:
        return True
    try:
        torch.ops.load_library(str(extensions[0]))
    except OSError:
        return True
    return False
