"""The fused class in transformers' own tables of names.

`transformers serve` (seen in 5.23) reads these tables before it opens a folder: a class that they lack is to it none of
a model that sees, whatever the Auto classes know.
"""

from importlib import import_module
from typing import Any


def list_names() -> None:
    """Name the class among those from images and text to text. Repeated calls change nothing."""
    auto: Any = import_module("transformers.models.auto.modeling_auto")
    for names in (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
        names.setdefault("fuse", "FusedForConditionalGeneration")
