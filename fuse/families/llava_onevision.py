"""LLaVA-OneVision: LLaVA-NeXT's parts on Qwen2 and SigLIP."""

from dataclasses import replace

from fuse.families.llava_next import FAMILY as LLAVA_NEXT

FAMILY = replace(LLAVA_NEXT, model_type="llava_onevision", text_type="qwen2", ties="either")
