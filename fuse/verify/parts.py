"""Folders that are no model: the parts that `fuse import` writes, and adapters. Whole they can be; run they cannot."""

from pathlib import Path

from fuse import strict_json
from fuse.branches.projector_folder import JSON as PROJECTOR
from fuse.branches.projector_folder import WEIGHTS as PROJECTOR_WEIGHTS
from fuse.branches.projector_folder import open_projector
from fuse.errors import CheckpointError
from fuse.grafts.donor import JSON as GRAFT
from fuse.grafts.donor import open_donor
from fuse.grafts.lora_peft import CONFIG as ADAPTER
from fuse.grafts.lora_peft import WEIGHTS as ADAPTER_WEIGHTS
from fuse.safetensors_header import TensorEntry, read_header
from fuse.verify.headers import Weights, by_file
from fuse.verify.outcome import Outcome

LANGUAGE = "language"  # the folder of a language model beside the parts
NO_MODEL = "parts are no model; a recipe that names them makes one"
NO_ADAPTER_MODEL = "an adapter changes a model and is none; a recipe with {base: MODEL, adapter: FOLDER} makes one"


def is_parts(folder: Path) -> bool:
    """Whether the folder holds a graft or a projector."""
    return (folder / GRAFT).is_file() or (folder / PROJECTOR).is_file()


def is_adapter(folder: Path) -> bool:
    """Whether the folder is an adapter as PEFT writes it."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def check_parts(folder: Path) -> tuple[Outcome, Weights]:
    """graft.json and projector.json describe the tensors beside them, name by name and shape by shape.

    Raises CheckpointError for the first that is missing, not wanted or of another shape.
    """
    told: list[str] = []
    entries: dict[str, TensorEntry] = {}
    if (folder / GRAFT).is_file():
        donor = open_donor(str(folder.resolve()), folder)
        told.append(f"a graft of kind {donor.kind}")
        entries |= {f"graft {name}": entry for name, entry in donor.tensors.items()}
    if (folder / PROJECTOR).is_file():
        given = open_projector(folder)
        told.append(f"a projector of kind {given.kind.kind if given.kind else 'linear'}")
        if (folder / PROJECTOR_WEIGHTS).is_file():
            stored = read_header(folder / PROJECTOR_WEIGHTS)
            entries |= {f"projector {name}": entry for name, entry in stored.items()}
    return Outcome(f"{' and '.join(told)}, every tensor as described"), by_file(entries)


def check_adapter(folder: Path) -> tuple[Outcome, Weights]:
    """The adapter's config is JSON and its file of weights is well-formed.

    Raises CheckpointError where not, and where there is none but a pickle.
    """
    told = strict_json.read_object(folder / ADAPTER, max_bytes=16 << 20)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"holds no {ADAPTER_WEIGHTS}", where=folder)
    stored = read_header(folder / ADAPTER_WEIGHTS)
    kind = str(told.get("peft_type", "?"))[:40]
    return Outcome(f"an adapter of type {kind}; whether it fits its base is not told without it"), by_file(stored)
