"""Llama 3.2 Vision: cross-attention layers instead of image tokens. Its head is never tied."""

from fuse.families.family import Family
from fuse.families.llava import IN_MEMORY, SAVED

_SHARED = {prefix: place for prefix, place in (SAVED | IN_MEMORY).items() if "vision_tower" not in prefix}

FAMILY = Family(
    model_type="mllama",
    prefixes={
        **_SHARED,
        "vision_model.": ("encoder", "vision_model."),
        "model.vision_model.": ("encoder", "vision_model."),
    },
    text="text_config",
    text_type="mllama_text_model",
    ties="never",
)
