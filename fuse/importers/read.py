"""Official checkpoint files, opened without running anything in them: pickles of PyTorch, and safetensors.

A pickle is read with torch's `weights_only` unpickler, which builds tensors, numbers, texts, lists and dicts and
refuses everything else. `argparse.Namespace`, which training scripts store beside the weights, is built too: it is a
plain record. Tensors stay as they are stored: half precision and bfloat16 are not widened.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fuse import strict_json
from fuse.errors import CheckpointError, RecipeError
from fuse.safetensors_header import read_header

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
WRAPPERS = ("model", "net", "state_dict", "model_state_dict", "module")
STRIPPED = ("module.", "_orig_mod.")  # of torch's DistributedDataParallel and torch.compile
BESIDE = ("params.json", "adapter_config.json", "config.json")
_TRAINING = re.compile(
    r"optim|sched|scaler|^amp$|epoch|step|iter|^args$|config|hyper|loss|best|seed|rng", re.IGNORECASE
)
_RESAVE = "where you trust it, save its state dict alone: torch.save(model.state_dict(), NEW_FILE)"
_DEEP = 4  # wrappers inside wrappers


@dataclass(frozen=True)
class Opened:
    """A checkpoint file's tensors, on the CPU, under their names without wrappers and prefixes.

    dropped: entries that are no weights, with the reason. files: what was read. beside: the JSON objects of BESIDE that
    lie in the same folder. args: the plain options of the training script, where it stored them beside the weights.
    """

    state: dict[str, torch.Tensor]
    dropped: dict[str, str]
    files: tuple[Path, ...]
    beside: dict[str, Mapping[str, Any]]
    args: dict[str, Any]


def open_source(path: Path, names: tuple[str, ...] = ()) -> Opened:
    """The tensors of one file, or of those of `names` that a folder holds.

    Raises RecipeError where there is no such file, CheckpointError where it is not whole, would run code, holds no
    tensors, or holds two of one name.
    """
    files = _files(path, names)
    state: dict[str, torch.Tensor] = {}
    dropped: dict[str, str] = {}
    args: dict[str, Any] = {}
    for file in files:
        loaded = _load(file)
        args |= _args(loaded)
        found, unused = _unwrap(loaded, file)
        for key, reason in unused.items():
            dropped[key if len(files) == 1 else f"{file.name}: {key}"] = reason
        for name, value in _stripped(found, file).items():
            if not isinstance(value, torch.Tensor):
                dropped[name] = f"{_article(value)}, not a tensor"
            elif name in state:
                raise CheckpointError(f"tensor {name!r} is in another file of the folder too", where=file)
            else:
                state[name] = _checked(name, value, file)
    if not state:
        raise CheckpointError("holds no tensors", where=path)
    folder = path if path.is_dir() else path.parent
    beside: dict[str, Mapping[str, Any]] = {
        name: strict_json.read_object(folder / name, max_bytes=1 << 20)
        for name in BESIDE if (folder / name).is_file()
    }  # fmt: skip
    return Opened(state, dropped, files, beside, args)


def _files(path: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    if not path.exists():
        raise RecipeError("there is no such file", where=path)
    if path.is_dir():
        found = tuple(path / name for name in names if (path / name).is_file())
        if not found:
            told = f"holds none of {', '.join(names)}" if names else "is a folder"
            raise RecipeError(told, where=path, hint="name the checkpoint file itself")
        return found
    if not path.is_file():
        raise RecipeError("is no plain file", where=path)
    if path.suffix.lower() not in SUFFIXES:
        raise RecipeError(f"has suffix {path.suffix!r}", where=path, hint=f"fuse imports {', '.join(SUFFIXES)}")
    return (path,)


def _load(file: Path) -> Any:
    with file.open("rb") as stream:
        start = stream.read(16)
    if file.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        read_header(file)  # whatever is wrong with it is said in one sentence
        return load_file(file)
    if start.startswith(b"version "):
        raise CheckpointError(
            "this is a git-lfs pointer, not the weights", where=file, hint="run `git lfs pull` in that folder"
        )
    if not start:
        raise CheckpointError("is empty", where=file)
    if start[8:9] == b"{":
        raise CheckpointError("looks like safetensors", where=file, hint="call it .safetensors")
    zipped = start.startswith(b"PK\x03\x04")
    if not zipped and not start.startswith(b"\x80"):
        raise CheckpointError("is no checkpoint of PyTorch: it begins neither as a zip nor as a pickle", where=file)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which are read or refused
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(str(error)), where=file, hint=_RESAVE) from None
    except MemoryError:
        raise
    except Exception as error:  # torch's readers raise anything for a broken file
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"is cut off or no checkpoint of PyTorch ({told})", where=file) from None


def _refused(told: str) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", told)
    what = f"its pickle asks for {asked[1]}" if asked else "its pickle holds more than tensors and plain values"
    return f"{what}, which loading might run; fuse reads weights only, and nothing was run"


def _unwrap(value: Any, file: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The state dict inside a checkpoint, and why the entries beside it are left out."""
    dropped: dict[str, str] = {}
    for _ in range(_DEEP):
        if not isinstance(value, Mapping):
            raise CheckpointError(f"holds {_article(value)}, not a state dict", where=file)
        inner = next((key for key in WRAPPERS if _holds_tensors(value.get(key))), None)
        if inner is None:
            break
        for key in value:
            if key != inner:
                training = _TRAINING.search(str(key))
                dropped[str(key)] = "of the training, not of the model" if training else f"stands beside {inner!r}"
        value = value[inner]
    if strange := [key for key in value if not isinstance(key, str)]:
        raise CheckpointError(f"has a key {strange[0]!r}, which is no name", where=file)
    return value, dropped


def _args(value: Any) -> dict[str, Any]:
    """Texts, numbers and truth values of the `args` that a training script stored."""
    given = value.get("args") if isinstance(value, Mapping) else None
    found = vars(given) if isinstance(given, argparse.Namespace) else {}
    return {key: one for key, one in found.items() if isinstance(key, str) and isinstance(one, str | int | float)}


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(one, torch.Tensor) or (key in WRAPPERS and _holds_tensors(one)) for key, one in value.items()
    )


def _stripped(state: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The entries under names without the prefixes of wrappers around the model."""
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in state.items():
        name = key
        while prefix := next((prefix for prefix in STRIPPED if name.startswith(prefix)), ""):
            name = name.removeprefix(prefix)
        if name in found:
            raise CheckpointError(f"keys {origin[name]!r} and {key!r} are the same one", where=file)
        found[name], origin[name] = value, key
    return found


def _checked(name: str, tensor: torch.Tensor, file: Path) -> torch.Tensor:
    """A plain tensor of numbers that the file really holds."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
        raise CheckpointError(f"tensor {name!r} is sparse, quantised, complex or not stored", where=file)
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"tensor {name!r} of shape {list(tensor.shape)} is larger than what is stored", where=file
        )
    return tensor


def _article(value: Any) -> str:
    word = {"NoneType": "nothing", "str": "a text", "int": "a number", "float": "a number", "bool": "a truth value"}
    return word.get(type(value).__name__, f"a {type(value).__name__}")
