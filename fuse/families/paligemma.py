"""PaliGemma (on Gemma) and PaliGemma 2 (on Gemma 2) with SigLIP."""

from dataclasses import replace

from fuse.families.llava import FAMILY as LLAVA

FAMILY = replace(LLAVA, model_type="paligemma", text_type="gemma", tied=True, ties="outer")
