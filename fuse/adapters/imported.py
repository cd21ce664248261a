"""A folder that `fuse import llava_lora` wrote, as an adapter: a graft of kind `lora`, and the projector beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import CheckpointError
from fuse.families import Basis
from fuse.grafts.donor import open_donor
from fuse.grafts.lora_files import folds, why_not
from fuse.safetensors_header import TensorEntry, read_header

PROJECTOR = "projector"
LLAVA = "model.mm_projector."  # where LLaVA's models hold their projector


def read_imported(folder: Path, basis: Basis) -> tuple[Mapping[str, Any], dict[str, TensorEntry], dict[str, str]]:
    """What stands for adapter_config.json; the tensors by stored name; and the names that PEFT would give them.

    Raises CheckpointError for a graft of another kind, one that does not fit the base, and one that changes a part of a
    matrix only.
    """
    donor = open_donor(str(folder), Path())
    if donor.kind != "lora":
        raise CheckpointError(
            f"is a graft of kind {donor.kind}, not an adapter", where=folder, hint="name it in `grafts`"
        )
    if why := why_not(donor.config, basis):
        raise CheckpointError(f"the base {why}", where=folder, hint="is it an adapter of this base?")
    tensors, names = dict(donor.tensors), dict[str, str]()
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for weight, changes in folds(donor.config, basis, 1.0).items():
        module, change = weight.removesuffix(".weight"), changes[0]
        rank, outputs = tensors[change.down].shape[0], tensors[change.up].shape[0]
        if len(changes) > 1 or change.rows != (0, outputs) or change.up_rows != (0, outputs):
            hint = "as a graft with `fold: true` it can be folded into such a base"
            raise CheckpointError(f"changes parts of {weight!r} of the base apart", where=folder, hint=hint)
        names |= {change.down: f"{module}.lora_A.weight", change.up: f"{module}.lora_B.weight"}
        ranks[module], alphas[module] = rank, change.scaling * rank
    if (folder / f"{PROJECTOR}.safetensors").is_file():
        beside = read_header(folder / f"{PROJECTOR}.safetensors")
        tensors |= beside
        names |= {key: LLAVA + key for key in beside}
        if "mm_vision_tower" not in _config(folder):
            raise CheckpointError(
                "holds a projector, and no config.json that names its vision tower", where=folder,
                hint="import a LLaVA release with its config.json, or name the projector in `vision`",
            )  # fmt: skip
    told = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "rank_pattern": ranks, "alpha_pattern": alphas}
    return told, tensors, names


def _config(folder: Path) -> Mapping[str, Any]:
    file = folder / "config.json"
    return strict_json.read_object(file, max_bytes=16 << 20) if file.is_file() else {}
