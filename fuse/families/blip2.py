"""BLIP-2: a Q-Former between a ViT and OPT or T5."""

from fuse.families.family import Family
from fuse.families.llava import TOWER_BUFFERS

FAMILY = Family(
    model_type="blip-2",
    prefixes={
        "language_model.": ("language", ""),
        "vision_model.": ("encoder", "vision_model."),
        "qformer.": ("projector", "qformer."),
        "query_tokens": ("projector", "query_tokens"),
        "language_projection.": ("projector", "language_projection."),
    },
    text="text_config",
    text_type="opt",
    ties="text",
    buffers=TOWER_BUFFERS,
)
