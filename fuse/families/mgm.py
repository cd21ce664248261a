"""MGM (Mini-Gemini): original LLaVA with a ConvNeXt beside the tower and attention that mines its details."""

from dataclasses import replace

from fuse.families.family import Part
from fuse.families.llava_original import FAMILY as LLAVA

_AUXILIARY: dict[str, tuple[Part, str]] = {
    "model.vision_tower_aux.": ("encoder", "vision_tower_aux."),
    "model.vlm_uni_query_projector.": ("projector", "vlm_uni_query_projector."),
    "model.vlm_uni_aux_projector.": ("projector", "vlm_uni_aux_projector."),
    "model.vlm_uni_val_projector.": ("projector", "vlm_uni_val_projector."),
}

FAMILY = replace(LLAVA, model_type="mgm", prefixes={**LLAVA.prefixes, **_AUXILIARY})
