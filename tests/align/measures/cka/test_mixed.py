"""What is left of a CKA between the same cells of different images."""

import numpy as np
import pytest
import torch

from fuse.align import Unmeasurable
from fuse.align.measures.cka.linear import linear_cka
from fuse.align.measures.cka.mixed import mixed_cka

IMAGES, CELLS = 60, 6
WHERE = torch.arange(CELLS).repeat(IMAGES)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(seed: int, *, place: float, seen: float) -> torch.Tensor:
    """[images * cells, 5]: what a cell has in all images, and what an image shows there, common to all seeds."""
    told = place * normal(0, CELLS, 3) + seen * normal(1, IMAGES, CELLS, 3)
    return (told @ normal(seed, 3, 5)).flatten(0, 1)


def test_places_alone_stay_and_images_alone_go() -> None:
    for place, seen, low, high in ((1, 0, 0.999, 1), (0, 1, -0.1, 0.1), (1, 1, 0.1, 0.9)):
        x, y = (tokens(seed, place=place, seen=seen) @ normal(9, 5, 5) for seed in (2, 2))
        assert linear_cka(x, y)[1] == pytest.approx(1)
        assert low <= mixed_cka(x, y, WHERE) <= high + 1e-9


def test_against_a_loop() -> None:
    """Rows in any order, one cell with a single row, another with three."""
    cells = torch.tensor([0, 1, 1, 0, 2, 1, 0, 0])
    x, y = normal(3, 8, 4), normal(4, 8, 6)
    pairs = [(0, 6), (3, 7), (6, 0), (7, 3), (1, 5), (2, 1), (5, 2)]
    rows = [np.array(side) for side in zip(*pairs, strict=True)]
    assert mixed_cka(x, y, cells) == pytest.approx(linear_cka(x[rows[0]], y[rows[1]])[1], abs=1e-12)


def test_one_image_has_no_other() -> None:
    with pytest.raises(Unmeasurable, match=r"^CKA needs at least 4 samples, not 0$"):
        mixed_cka(normal(3, 9, 4), normal(4, 9, 4), torch.arange(9))
