"""Qwen3-VL: Qwen2-VL's names and a merger for each layer that DeepStack feeds."""

from dataclasses import replace

from fuse.families.family import Part
from fuse.families.qwen2_vl import FAMILY as QWEN2_VL

_DEEPSTACK: dict[str, tuple[Part, str]] = {
    "visual.deepstack_merger_list.": ("projector", "visual.deepstack_merger_list."),
    "model.visual.deepstack_merger_list.": ("projector", "visual.deepstack_merger_list."),
}

FAMILY = replace(
    QWEN2_VL,
    model_type="qwen3_vl",
    prefixes={**QWEN2_VL.prefixes, **_DEEPSTACK},
    text_type="qwen3_vl_text",
    ties="outer",
)
