"""Qwen2.5-VL: Qwen2-VL's names around another tower."""

from dataclasses import replace

from fuse.families.qwen2_vl import FAMILY as QWEN2_VL

FAMILY = replace(QWEN2_VL, model_type="qwen2_5_vl", text_type="qwen2_5_vl_text")
