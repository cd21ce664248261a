"""LION's vision aggregator, as JSON tells it (arXiv 2311.11860, section 3.1): which blocks it reads, which tensors.

layers         blocks of the vision tower: the one whose tokens ask, then one for each block of the aggregator, whose
               tokens answer; EVA-g's 38, 28, 18 in the authors' checkpoints, counted from 0
width, heads   of the tower's tokens, and of attention among them
intermediate   numbers inside a feed-forward layer
inner          numbers between the two linear layers that make visual tokens
hidden_size    numbers of a visual token: what the language model reads
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.encoder_reads import Reads

LAYERS = (38, 28, 18)
_LINEARS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
_LIMIT = 1 << 20


def reads(config: Mapping[str, Any]) -> Reads:
    """Raw outputs of several blocks, class token and all."""
    layers = config["layers"]
    if not isinstance(layers, list | tuple) or len(layers) < 2 or len(layers) > 100:
        raise ValueError(f"layers is {layers!r}, not a list of two blocks of the tower or more")
    return Reads("blocks", tuple(layers))


def widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of one of the tower's tokens, and of one visual token."""
    width, heads = _whole(config, "width"), _whole(config, "heads")
    if width % heads:
        raise ValueError(f"width {width} does not divide by {heads} heads")
    return width, _whole(config, "hidden_size")


def tokens(config: Mapping[str, Any], given: int) -> int:
    """One for each token of the tower, the class token among them: 257 of EVA-g at 224 pixels."""
    del config
    return given


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor, under the names of the authors' checkpoint."""
    width, hidden = widths(config)
    middle, inner = _whole(config, "intermediate"), _whole(config, "inner")
    found: dict[str, tuple[int, ...]] = {}
    for i in range(len(reads(config).layers) - 1):
        block = f"fusion_adapter.blocks.{i}"
        for name in (*_LINEARS, *(f"cross{name}" for name in _LINEARS)):
            found |= _affine(f"{block}.{name}", width, width)
        for name in ("attention.output", "crossattention.output", "output"):
            found |= _affine(f"{block}.{name}.LayerNorm", width)
        found |= _affine(f"{block}.intermediate.dense", middle, width)
        found |= _affine(f"{block}.output.dense", width, middle)
    found |= _affine("ln_adapter", width)
    found |= _affine("adapter_proj.0", inner, width)
    return found | _affine("adapter_proj.2", hidden, inner)


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if type(value) is not int or not 0 < value <= _LIMIT:
        raise ValueError(f"{key} is {value!r}, not a whole number from 1 to {_LIMIT:,}")
    return value
