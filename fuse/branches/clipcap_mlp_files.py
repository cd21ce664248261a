"""ClipCap's MLP mapper: one pooled CLIP feature into a prefix, from its config alone (arXiv 2111.09734; train.py).

config: width (c, of the CLIP feature), hidden (the layer between, d * L // 2 in the authors' scripts), hidden_size (d,
of the language model), prefix_length (L), normalize (whether the feature is first brought to length 1, as the authors'
`--normalize_prefix` does; off by default). Tensors keep the authors' names, without `clip_project.`.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.encoder_reads import Reads

Config = Mapping[str, Any]


def reads(config: Config) -> Reads:
    """What CLIP's `encode_image` gives."""
    return Reads("pooled")


def widths(config: Config) -> tuple[int, int]:
    """Numbers of the CLIP feature, and of one token of the prefix."""
    return number(config, "width"), number(config, "hidden_size")


def tokens(config: Config, given: int) -> int:
    """The prefix."""
    return number(config, "prefix_length")


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Two linear layers, with Tanh between them."""
    normalizes(config)
    hidden, out = number(config, "hidden"), number(config, "prefix_length") * number(config, "hidden_size")
    return {
        "model.0.weight": (hidden, number(config, "width")), "model.0.bias": (hidden,),
        "model.2.weight": (out, hidden), "model.2.bias": (out,),
    }  # fmt: skip


def number(config: Config, key: str) -> int:
    """A positive whole number of a config. Raises KeyError where it is missing, ValueError for anything else."""
    value = config[key]
    if type(value) is not int or not 0 < value < 1 << 24:
        raise ValueError(f"{key} is {value!r}, not a positive whole number")
    return value


def normalizes(config: Config) -> bool:
    """Whether the CLIP feature is brought to length 1 first. Raises ValueError for what is neither true nor false."""
    value = config.get("normalize", False)
    if type(value) is not bool:
        raise ValueError(f"normalize is {value!r}, neither true nor false")
    return value
