"""Aya Vision: Cohere 2 with SigLIP."""

from dataclasses import replace

from fuse.families.llava import FAMILY as LLAVA

FAMILY = replace(LLAVA, model_type="aya_vision", text_type="cohere2", tied=True, ties="outer")
