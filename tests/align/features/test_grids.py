import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align.features.grids import common_grid, pooled
from tests.align.oracles import few, normal, seeds

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def by_repeating(tokens, grid, to):
    """The mean over each cell after both grids are cut so finely that their edges meet."""
    fine = [g * t for g, t in zip(grid, to, strict=True)]
    image = tokens.numpy().reshape(len(tokens), *grid, -1)
    image = image.repeat(to[0], axis=1).repeat(to[1], axis=2)
    cells = image.reshape(len(tokens), to[0], fine[0] // to[0], to[1], fine[1] // to[1], -1)
    return cells.mean((2, 4)).reshape(len(tokens), to[0] * to[1], -1)


@few
@given(seeds, sizes, sizes)
def test_oracle(seed, grid, to):
    tokens = normal(seed, 2 * grid[0] * grid[1], 3).view(2, -1, 3)
    found = pooled(tokens, grid, to)
    np.testing.assert_allclose(found, by_repeating(tokens, grid, to), atol=1e-12)
    np.testing.assert_allclose(found.mean(1), tokens.mean(1), atol=1e-12)


def test_known_answers():
    tokens = torch.arange(6.0).view(1, 6, 1)
    assert pooled(tokens, (2, 3), (1, 3)).flatten().tolist() == [1.5, 2.5, 3.5]
    assert pooled(tokens, (2, 3), (2, 1)).flatten().tolist() == [1, 4]
    # the cells of width 1.5 take a whole token and half of the middle one
    torch.testing.assert_close(pooled(tokens, (2, 3), (2, 2)).flatten(), torch.tensor([1 / 3, 5 / 3, 10 / 3, 14 / 3]))
    assert pooled(tokens, (2, 3), (2, 3)) is not None
    assert torch.equal(pooled(tokens, (2, 3), (2, 3)), tokens)


def test_the_mean_over_tokens_where_there_is_no_grid():
    tokens = normal(0, 14, 3).view(2, 7, 3)
    found = pooled(tokens, None, None)
    assert found.shape == (2, 1, 3)
    torch.testing.assert_close(found[:, 0], tokens.mean(1))
    torch.testing.assert_close(pooled(tokens, (7, 1), None), found)


def test_dtypes():
    tokens = torch.ones(1, 4, 3)
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        for grid, to in [((2, 2), (1, 1)), ((2, 2), (2, 2)), (None, None)]:
            assert pooled(tokens.to(dtype), grid, to).dtype == expected


def test_the_choice_and_its_sentence():
    found = common_grid({"a": (16, 16), "b": (24, 24)})
    assert found.grid == (16, 16)
    assert (
        found.sentence
        == "tokens are averaged over the cells of a 16 x 16 grid, the smallest of a (16 x 16) and b (24 x 24)"
    )
    mixed = common_grid({"a": (16, 9), "b": (12, 12), "c": (20, 20)})
    assert mixed.grid == (12, 9)
    assert mixed.sentence.endswith(", the smallest of a (16 x 9), b (12 x 12) and c (20 x 20)")
    same = common_grid({"a": (7, 7), "b": (7, 7)})
    assert same == ((7, 7), "tokens are compared one by one, on the 7 x 7 grid that all encoders have")
    without = common_grid({"a": (7, 7), "q": None})
    assert without == (None, "each image is the mean of its tokens, as q has no grid of tokens")
    both = common_grid({"p": None, "a": (7, 7), "q": None})
    assert both == (None, "each image is the mean of its tokens, as p and q have no grid of tokens")
    smaller = common_grid({"a": (16, 16), "b": (24, 24)}, cells=64)
    assert smaller.grid == (8, 8)
    assert (
        smaller.sentence
        == "tokens are averaged over the cells of an 8 x 8 grid, of at most 64 cells, from a (16 x 16) and b (24 x 24)"
    )
    assert common_grid({"a": (7, 7)}, cells=49).grid == (7, 7)
    assert "of a 1 x 1 grid, of at most 1 cell, from" in common_grid({"a": (2, 2)}, cells=1).sentence


def test_a_smaller_grid_keeps_within_its_cells_and_its_shape():
    for height, width, cells in itertools.product((1, 2, 7, 16, 40), (1, 3, 16, 33), (1, 2, 5, 64)):
        grid = common_grid({"a": (height, width)}, cells=cells).grid
        assert grid is not None
        assert 1 <= grid[0] <= height and 1 <= grid[1] <= width and grid[0] * grid[1] <= cells
    assert common_grid({"a": (40, 10)}, cells=64).grid == (16, 4)


def test_bad_input():
    tokens = torch.ones(1, 5, 3)
    with pytest.raises(ValueError, match=r"^5 tokens do not fill a grid of 2 x 2$"):
        pooled(tokens, (2, 2), (1, 1))
    with pytest.raises(ValueError, match=r"^tokens without a grid have no cells, only a mean$"):
        pooled(tokens, None, (1, 1))
    for grids in ({}, {"a": (0, 3)}):
        with pytest.raises(ValueError, match=r"^each encoder should have a grid of at least one token, or none$"):
            common_grid(grids)
    with pytest.raises(ValueError, match=r"^cells should be at least 1, not 0$"):
        common_grid({"a": (2, 2)}, cells=0)
