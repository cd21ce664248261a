"""Idefics3: Llama 3 and a SigLIP tower behind a pixel shuffle."""

from dataclasses import replace

from fuse.families.idefics2 import FAMILY as IDEFICS2

FAMILY = replace(IDEFICS2, model_type="idefics3", text_type="llama")
