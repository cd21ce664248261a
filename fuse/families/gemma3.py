"""Gemma 3 with SigLIP."""

from dataclasses import replace

from fuse.families.llava import FAMILY as LLAVA

FAMILY = replace(LLAVA, model_type="gemma3", text_type="gemma3_text", tied=True, ties="outer")
