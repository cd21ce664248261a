"""The branch side of LLaMA-Adapter v2, as JSON tells it: no weights, no visual tokens. Needs no torch.

The adapter's graft looks at CLIP's tokens itself and makes prompts of them for the attention of the language model's
blocks (`fuse.grafts.llama_adapter_visual`). The branch only encodes the image, as the authors do: class token and
patches behind the last norm and the projection.

config: `width`, numbers of one of CLIP's projected tokens, and `hidden_size` of the language model.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.encoder_reads import Reads


def reads(config: Mapping[str, Any]) -> Reads:
    """All tokens, projected."""
    del config
    return Reads("projected")


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """There is nothing to learn."""
    del config
    return {}


def widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of one feature, and of a token of the language model."""
    return _whole(config, "width"), _whole(config, "hidden_size")


def tokens(config: Mapping[str, Any], given: int) -> int:
    """None."""
    del config, given
    return 0


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if type(value) is not int or not 0 < value < 1 << 24:
        raise ValueError(f"{key} is {value!r}, not a whole number above 0")
    return value
