"""Idefics2: Mistral, a SigLIP-like tower, a perceiver resampler."""

from fuse.families.family import Family
from fuse.families.llava import TOWER_BUFFERS

FAMILY = Family(
    model_type="idefics2",
    prefixes={
        "model.text_model.": ("language", "model."),
        "lm_head.": ("language", "lm_head."),
        "model.vision_model.": ("encoder", "vision_model."),
        "model.connector.": ("projector", "connector."),
    },
    text="text_config",
    text_type="mistral",
    buffers=TOWER_BUFFERS,
)
