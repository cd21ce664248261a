"""InternVL as transformers has it; the original's names are in `internvl_chat`."""

from dataclasses import replace

from fuse.families.llava import FAMILY as LLAVA

FAMILY = replace(LLAVA, model_type="internvl", text_type="qwen2", tied=True, ties="outer")
