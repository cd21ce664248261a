"""What a branch reads of its encoder, besides the patch tokens that a linear projector takes. Needs no torch.

patches    [B, n, width]      patch tokens, without class and register tokens, as the library gives them at its end
pooled     [B, 1, c]          what CLIP's `get_image_features` and open_clip's `encode_image` give, not L2-normalised
class      [B, 1, width]      the class token behind the tower's last norm, before any projection; with `layers`
           [B, k, width]      the class tokens that those blocks give, without a norm
projected  [B, 1 + n, c]      class token and patches, all behind the last norm and the projection
blocks     [B, k, p, width]   all tokens (class and register tokens first) that the blocks `layers` give, without a norm

Layers count from 0, the first block; -1 is the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuse.errors import CheckpointError

KINDS = ("patches", "pooled", "class", "projected", "blocks")


@dataclass(frozen=True)
class Reads:
    """what: a word of KINDS. layers: of `blocks`, and of `class` where it reads earlier blocks; in the order read."""

    what: str = "patches"
    layers: tuple[int, ...] = ()


def reads_of(what: Any, layers: Any, where: object) -> Reads:
    """The same from JSON (`reads`, `layers`). Raises CheckpointError for what cannot be read."""
    if what not in KINDS:
        raise CheckpointError(f"reads is {what!r}, not one of {', '.join(KINDS)}", where=where)
    good = isinstance(layers, Sequence) and not isinstance(layers, str) and all(type(one) is int for one in layers)
    if not good or len(layers) > 1000:
        raise CheckpointError(f"layers is {layers!r}, not a list of layers", where=where)
    if bool(layers) != (what == "blocks") and what != "class":
        told = "has no layers" if what == "blocks" else f"reads {what}, and no layers"
        raise CheckpointError(told, where=where)
    return Reads(what, tuple(layers))
