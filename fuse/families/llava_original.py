"""Checkpoints of the original LLaVA code: the language model's own config and names, with `mm_` keys added."""

from fuse.families.family import Family
from fuse.families.llava import TOWER_BUFFERS

FAMILY = Family(
    model_type="llava",
    prefixes={
        "": ("language", ""),
        "model.mm_projector.": ("projector", "multi_modal_projector."),
        "model.mm_projector.0.": ("projector", "multi_modal_projector.linear_1."),
        "model.mm_projector.2.": ("projector", "multi_modal_projector.linear_2."),
        "model.mm_projector.4.": ("projector", "multi_modal_projector.linear_3."),
        "model.vision_tower.": ("encoder", "vision_tower."),
        "model.vision_tower.vision_tower.": ("encoder", "vision_tower."),
        "model.vision_tower.vision_tower.vision_model.": ("encoder", "vision_tower."),
        "model.image_newline": ("extra", "image_newline"),
    },
    vision="",
    buffers=TOWER_BUFFERS,
    native=False,
)
