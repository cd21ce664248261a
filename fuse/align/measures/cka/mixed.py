"""The CKA that is left when images are mixed up: how much tokens are alike for their place and not for their image."""

import torch
from torch import Tensor

from fuse.align.measures.cka.linear import linear_cka


def mixed_cka(x: Tensor, y: Tensor, cells: Tensor) -> float:
    """The unbiased linear CKA of tokens of x with tokens of y in the same cell of another image.

    Encoders add positions to what they see, so that tokens of different images in one cell are alike, and over tokens
    CKA counts that too: this is its value where nothing of the image is shared. About 0 where place tells nothing.
    Among the rows of a cell those of y move on by half their number; a cell with a single row is left out (our choice).
    x: ``(n, p)``; y: ``(n, q)``, row i being one cell of one image. cells: ``(n,)``, its number. Raises as `LinearCKA`.
    """
    left, right = [], []
    for cell in cells.unique():
        rows = (cells == cell).nonzero()[:, 0]
        if len(rows) > 1:
            left.append(rows)
            right.append(rows.roll(len(rows) // 2))
    nothing = cells.new_zeros(0)
    return linear_cka(x[torch.cat([nothing, *left])], y[torch.cat([nothing, *right])])[1]
