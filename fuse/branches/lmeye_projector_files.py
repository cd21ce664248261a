"""LMEye's static mapping, known from its config alone: one linear map from CLIP's image vector (arXiv 2305.03701, 3.1).

config: `width` (c, of the vector), `hidden_size` (d, of the language model), `tokens` (n, visual tokens of one image; 1
in the published models).
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.encoder_reads import Reads


def reads(config: Mapping[str, Any]) -> Reads:
    """What CLIP's `get_image_features` gives, not L2-normalised."""
    del config
    return Reads("pooled")


def widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of the vector, and of a visual token."""
    return config["width"], config["hidden_size"]


def tokens(config: Mapping[str, Any], given: int) -> int:
    """Visual tokens of one image."""
    del given
    return config["tokens"]


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of projector.safetensors. Raises KeyError and ValueError for a config that is none."""
    for name in ("width", "hidden_size", "tokens"):
        if type(config[name]) is not int or not 0 < config[name] < 1 << 31:
            raise ValueError(f"{name} is {config[name]!r}, not a size")
    c, d, n = config["width"], config["hidden_size"], config["tokens"]
    return {"imgLinear.weight": (n * d, c), "imgLinear.bias": (n * d,), "embedding_img.weight": (1, d)}
