"""ViP-LLaVA: LLaVA whose projector reads several layers of the tower."""

from dataclasses import replace

from fuse.families.llava import FAMILY as LLAVA

FAMILY = replace(LLAVA, model_type="vipllava", ties="outer")
