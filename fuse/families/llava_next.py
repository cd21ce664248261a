"""LLaVA-NeXT (1.6): LLaVA and a vector that ends each row of image tokens."""

from dataclasses import replace

from fuse.families.family import Part
from fuse.families.llava import FAMILY as LLAVA

NEWLINE: dict[str, tuple[Part, str]] = {
    "image_newline": ("extra", "image_newline"),
    "model.image_newline": ("extra", "image_newline"),
}

FAMILY = replace(LLAVA, model_type="llava_next", prefixes={**LLAVA.prefixes, **NEWLINE}, ties="outer")
