"""Where the views of original-LLaVA branches lie on the image, as `fuse.branches.views.Lens` makes them."""

import numpy as np
from numpy.typing import NDArray

from fuse.branches.anyres import fitted
from fuse.branches.encoder_places import centred
from fuse.branches.places import Box, Size, grid_boxes, padded
from fuse.branches.views import Lens


def view_box(lens: Lens, size: Size, *, pad: bool = False) -> Box:
    """What `Lens.view` shows of a picture; pad: of the square that `Lens.squared` makes of it."""
    if pad:
        return _within(view_box(lens, (1, 1)), padded(size))
    return centred(size, (lens.edge, lens.edge), (lens.crop, lens.crop), "squash" if lens.square else "shortest")


def cut_boxes(lens: Lens, size: Size, target: Size) -> list[Box]:
    """What each view of `Lens.cut` shows: the whole picture, then the parts of the canvas by rows."""
    wide, high = fitted(size, target)
    left, top = (target[0] - wide) // 2, (target[1] - high) // 2
    canvas = (-left / wide, -top / high, (target[0] - left) / wide, (target[1] - top) / high)
    shown = view_box(lens, (1, 1))  # of a square: all of it, unless the tower's preprocessing cuts its edges off
    parts = grid_boxes(target[1] // lens.crop, target[0] // lens.crop, canvas)
    return [shown, *(_within(shown, (a, b, c, d)) for a, b, c, d in parts.tolist())]


def cell_boxes(views: list[Box], side: int, *, with_class: bool = False) -> NDArray[np.float64]:
    """The boxes [views, n, 4] of each view's side x side tokens by rows; a class token before them has none."""
    cells = np.stack([grid_boxes(side, side, view) for view in views])
    return np.concatenate([np.zeros((len(views), 1, 4)), cells], 1) if with_class else cells


def _within(inner: Box, outer: Box) -> Box:
    """A box that is given in parts of another box."""
    wide, high = outer[2] - outer[0], outer[3] - outer[1]
    left, top, right, bottom = inner
    return outer[0] + left * wide, outer[1] + top * high, outer[0] + right * wide, outer[1] + bottom * high
