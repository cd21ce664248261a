"""LaVIN's projector, as JSON tells it: what it reads of CLIP, and its tensors. Needs no torch.

config: `width` (of the encoder), `hidden` (channels between its two layers), `hidden_size` (of the language model), and
`layers`: the blocks whose class tokens it reads, counted from 0. The authors read every fourth block of ViT-L/14
(their changed CLIP, clip/model.py), six tokens of an image, without a norm. No layers: the one class token behind the
tower's last norm, which is our choice for encoders that give no earlier ones.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.encoder_reads import Reads


def reads(config: Mapping[str, Any]) -> Reads:
    """The class tokens of `layers`, or of the tower's end."""
    layers = config.get("layers", [])
    if not isinstance(layers, list) or not all(type(one) is int for one in layers):
        raise ValueError(f"layers is {layers!r}, not a list of whole numbers")
    return Reads("class", tuple(layers))


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of projector.safetensors."""
    width, hidden, gives = (_whole(config, key) for key in ("width", "hidden", "hidden_size"))
    return {
        "conv_A.weight": (hidden, width),
        "conv_A.bias": (hidden,),
        "conv_B.weight": (gives, hidden),
        "conv_B.bias": (gives,),
    }


def widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of a class token, and of a token that the language model reads."""
    return _whole(config, "width"), _whole(config, "hidden_size")


def tokens(config: Mapping[str, Any], given: int) -> int:
    """One token for every class token."""
    del config
    return given


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if type(value) is not int or not 0 < value < 1 << 24:
        raise ValueError(f"{key} is {value!r}, not a whole number above 0")
    return value
