"""The folder of an adapter: as PEFT writes it, or as `fuse import llava_lora` does. Headers only."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.checkpoint import Checkpoint, fetch_entries, locate
from fuse.errors import CheckpointError
from fuse.families import Basis
from fuse.grafts.donor import JSON
from fuse.grafts.lora_peft import CONFIG, WEIGHTS
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry, read_header

PICKLES = ("adapter_model.bin", "non_lora_trainables.bin")  # the latter: what LLaVA trains beside


@dataclass(frozen=True)
class Folder:
    """An opened folder. told: adapter_config.json, or what stands for it. names: of PEFT, by stored name."""

    checkpoint: Checkpoint
    told: Mapping[str, Any]
    names: Mapping[str, str]


def open_folder(name: str, location: str, basis: Basis, *, revision: str | None, relative_to: Path) -> Folder:
    """The adapter's config and tensors. basis: of the base.

    Errors as `fuse.checkpoint.open_checkpoint` raises them, and as `fuse.grafts.donor.open_donor`.
    """
    folder, repository, commit = locate(location, revision, relative_to, "an adapter is the folder that PEFT wrote")
    if (folder / JSON).is_file() and not (folder / CONFIG).is_file():
        from fuse.adapters.imported import read_imported

        told, tensors, names = read_imported(folder, basis)
        return Folder(Checkpoint(name, folder, told, tensors, location, commit, None), told, names)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"holds no {CONFIG}", where=folder, hint="an adapter is the folder that PEFT wrote")
    config = strict_json.read_object(folder / CONFIG, max_bytes=16 << 20)
    away = repository.names if repository else frozenset()
    here = (folder / WEIGHTS).is_file() or WEIGHTS in away
    for pickle in PICKLES[here:]:
        if (folder / pickle).is_file() or pickle in away:
            raise CheckpointError(
                f"holds {pickle}, a pickle, which only `fuse import` reads", where=folder,
                hint="fuse import llava_lora FOLDER OUT, and name OUT as the adapter",
            )  # fmt: skip
    if not here:
        raise CheckpointError(f"holds no {WEIGHTS}", where=folder)
    if repository is None or (not repository.etags and (folder / WEIGHTS).exists()):
        tensors = read_header(folder / WEIGHTS)
    else:
        tensors = repository.header(WEIGHTS, folder / WEIGHTS)
    _check(tensors)
    opened = Checkpoint(name, folder, config, tensors, location, commit, repository)
    return Folder(opened, config, {key: key for key in tensors})


def _check(tensors: dict[str, TensorEntry]) -> None:
    for entry in tensors.values():
        if entry.dtype not in FLOAT_BYTES:
            raise CheckpointError(f"tensor {entry.name!r} has dtype {entry.dtype}, not floats", where=entry.file)


def fetch_adapter(checkpoint: Checkpoint, wanted: Collection[TensorEntry] | None = None) -> None:
    """Bring the weights of an adapter that is elsewhere to this machine; as `fuse.checkpoint.fetch`."""
    fetch_entries(checkpoint, list(checkpoint.tensors.values()), wanted)
    if checkpoint.repository is not None and read_header(checkpoint.folder / WEIGHTS) != checkpoint.tensors:
        raise CheckpointError("the weights changed while they were read", where=checkpoint.folder)
