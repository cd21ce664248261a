"""What an opened checkpoint holds: tensors under their names without wrappers and prefixes, and what is left out."""

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fuse.errors import CheckpointError

WRAPPERS = ("model", "net", "state_dict", "model_state_dict", "module")
STRIPPED = ("module.", "_orig_mod.")  # of torch's DistributedDataParallel and torch.compile
_TRAINING = re.compile(
    r"optim|sched|scaler|^amp$|epoch|step|iter|^args$|config|hyper|loss|best|seed|rng", re.IGNORECASE
)
_DEEP = 4  # wrappers inside wrappers


@dataclass(frozen=True)
class Contents:
    """One file's tensors by name, why its other entries are left out, and the plain options of a training script."""

    state: Mapping[str, torch.Tensor]
    dropped: Mapping[str, str]
    args: Mapping[str, Any]


def contents_of(loaded: Any) -> Contents:
    """The contents of what a reader made of a file.

    Raises CheckpointError, without the file, where that is no state dict, where two keys are one, or where a tensor is
    more than plain numbers that are stored.
    """
    found, dropped = _unwrap(loaded)
    state: dict[str, torch.Tensor] = {}
    for name, value in _stripped(found).items():
        if isinstance(value, torch.Tensor):
            state[name] = _checked(name, value)
        else:
            dropped[name] = f"{_article(value)}, not a tensor"
    return Contents(state, dropped, _args(loaded))


def _unwrap(value: Any) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The state dict inside a checkpoint, and why the entries beside it are left out."""
    dropped: dict[str, str] = {}
    for _ in range(_DEEP):
        if not isinstance(value, Mapping):
            raise CheckpointError(f"holds {_article(value)}, not a state dict")
        inner = next((key for key in WRAPPERS if _holds_tensors(value.get(key))), None)
        if inner is None:
            break
        for key in value:
            if key != inner:
                training = _TRAINING.search(str(key))
                dropped[str(key)] = "of the training, not of the model" if training else f"stands beside {inner!r}"
        value = value[inner]
    if strange := [key for key in value if not isinstance(key, str)]:
        raise CheckpointError(f"has a key {strange[0]!r}, which is no name")
    return value, dropped


def _args(value: Any) -> dict[str, Any]:
    """Texts, numbers and truth values of the `args` that a training script stored."""
    given = value.get("args") if isinstance(value, Mapping) else None
    found = vars(given) if isinstance(given, argparse.Namespace) else {}
    return {key: one for key, one in found.items() if isinstance(key, str) and _is_plain(one)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and abs(value) < math.inf)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(one, torch.Tensor) or (key in WRAPPERS and _holds_tensors(one)) for key, one in value.items()
    )


def _stripped(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries under names without the prefixes of wrappers around the model."""
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in state.items():
        name = key
        while prefix := next((prefix for prefix in STRIPPED if name.startswith(prefix)), ""):
            name = name.removeprefix(prefix)
        if name in found:
            raise CheckpointError(f"keys {origin[name]!r} and {key!r} are the same one")
        found[name], origin[name] = value, key
    return found


def _checked(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor of numbers that the file really holds."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
        raise CheckpointError(f"tensor {name!r} is sparse, quantised, complex or not stored")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"tensor {name!r} of shape {list(tensor.shape)} is larger than what is stored")
    return tensor


def _article(value: Any) -> str:
    word = {"NoneType": "nothing", "str": "a text", "int": "a number", "float": "a number", "bool": "a truth value"}
    return word.get(type(value).__name__, f"a {type(value).__name__}")
