"""How an encoder's tokens lie, as the branch's JSON says it: `"grid": {"image": [H, W], "tokens": [h, w]}`.

Stated where the files tell it, so that the tower need not be built to prepare an image. Neither torch nor a library is
imported.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.encoder_layers import Stack
from fuse.errors import CheckpointError

Pair = tuple[int, int]


def grid_of(size: Pair | None, stride: int | None, square: Pair | None) -> Pair | None:
    """(h, w) tokens of every image, None where only the built tower knows.

    size: (h, w) pixels of a prepared image. stride: pixels that one token is wide. square: the tokens that a table of
    positions was made for.
    """
    return (size[0] // stride, size[1] // stride) if size and stride else square


def stated_grid(size: Pair | None, stride: int | None, square: Pair | None, stack: Stack | None) -> dict[str, Any]:
    """What goes into the branch's JSON; empty where it is not certain. As `grid_of`; stack: the tower's layers.

    Not certain: pixels left over at an edge, which stages may pad (blocks of one width leave them out), and a table of
    positions for another size. A table alone tells its size where the stride is known.
    """
    image = size or ((square[0] * stride, square[1] * stride) if square and stride else None)
    tokens = grid_of(image, stride, square)
    blocks = stack is not None and not stack.widths
    if image is None or tokens is None or square not in (None, tokens):
        return {}
    if stride and not blocks and (image[0] % stride or image[1] % stride):
        return {}
    return {"grid": {"image": list(image), "tokens": list(tokens)}}


def grid_for(config: Mapping[str, Any], image: Pair) -> Pair | None:
    """The (h, w) tokens that a branch's JSON states for a prepared image of (h, w) pixels, None where it states none.

    Raises CheckpointError for a statement that cannot be one.
    """
    stated = config.get("grid")
    if stated is None:
        return None
    read = stated if isinstance(stated, Mapping) else {}
    pixels, tokens = _pair(read.get("image")), _pair(read.get("tokens"))
    if not pixels or not tokens or tokens[0] > pixels[0] or tokens[1] > pixels[1]:
        raise CheckpointError(f"grid is {stated!r}, not the tokens of an image", where="config.json: branches")
    return tokens if pixels == image else None


def _pair(value: Any) -> Pair | None:
    good = isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    return (value[0], value[1]) if good else None
