"""SmolVLM: Idefics3's parts on SmolLM2."""

from dataclasses import replace

from fuse.families.idefics3 import FAMILY as IDEFICS3

FAMILY = replace(IDEFICS3, model_type="smolvlm")
