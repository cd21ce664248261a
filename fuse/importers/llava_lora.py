"""LoRA as LLaVA publishes it, and as PEFT saves it: a folder with adapter_config.json.

LLaVA's folder holds `adapter_model.bin` and `non_lora_trainables.bin`, the projector that was trained beside the
adapter; PEFT's own holds `adapter_model.safetensors` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fuse.errors import CheckpointError
from fuse.grafts.lora_peft import CONFIG, read_peft
from fuse.importers import About, Imported, Piece

if TYPE_CHECKING:
    from torch import Tensor

HELP = "LoRA: a folder of LLaVA (adapter_model and non_lora_trainables) or of PEFT (adapter_model)"
_PREFIXES = ("base_model.model.model.mm_projector.", "base_model.model.mm_projector.", "model.mm_projector.")


def sort_keys(state: Mapping[str, Tensor], about: About) -> Imported:
    """The factors into a graft of kind `lora`, a projector that lies beside them into an ordinary projector file, and
    LLaVA's config.json, which says how the projector was trained.

    Raises CheckpointError for whatever was trained besides: whole weights are no adapter.
    """
    if CONFIG not in about.beside:
        hint = "name the folder that holds both"
        raise CheckpointError(f"has no {CONFIG} beside it, so its alpha is not known", hint=hint)
    projector: dict[str, str] = {}
    factors: dict[str, tuple[int, ...]] = {}
    for key, tensor in state.items():
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
        if prefix and ".lora_" not in key:
            projector[key] = key.removeprefix(prefix)
        elif ".lora_" not in key:
            hint = "a member that holds whole weights can be merged instead"
            raise CheckpointError(f"tensor {key!r} is a whole weight that was trained beside the LoRA", hint=hint)
        else:
            factors[key] = tuple(tensor.shape)
    config, names = read_peft(factors, about.beside[CONFIG])
    graft = Piece.renamed("lora", config, state, names)
    llava = about.beside.get("config.json", {})
    beside = {"config.json": llava} if projector and "mm_vision_tower" in llava else {}
    return Imported(graft, Piece.renamed("linear", {}, state, projector) if projector else None, beside=beside)
