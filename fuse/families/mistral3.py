"""Mistral Small 3.1 and 3.2 with the Pixtral tower."""

from dataclasses import replace

from fuse.families.llava import FAMILY as LLAVA

FAMILY = replace(LLAVA, model_type="mistral3", text_type="mistral", tied=True, ties="outer")
