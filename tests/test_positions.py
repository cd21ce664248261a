"""Positions of fused prompts, against Qwen2-VL's own code and by hand."""

import numpy as np
import pytest
import torch

from fuse.model.positions import Patch, positions
from tests import tiny_vlm

IMAGE, TEXT = 90, 5


def patch(row: int, start: int, grid: tuple[int, int, int] | None, cells: list[int]) -> Patch:
    return Patch(row, torch.arange(start, start + len(cells)), grid, torch.tensor(cells))


def test_hosts_without_axes_count_what_they_attend_to() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 0, 1]])
    assert positions("llava", mask, []).tolist() == [[0, 0, 0, 1, 0, 2]]
    assert positions("paligemma", mask, []).tolist() == [[1, 1, 1, 2, 1, 3]]


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_own_images_stand_as_in_qwen(model_type: str) -> None:
    """Two images in one row and one in the other, left padding between: Qwen's get_rope_index says the same."""
    model = tiny_vlm.build(model_type).model
    grids = [(1, 2, 3), (1, 4, 2), (1, 3, 3)]
    rows = [
        [TEXT] * 2 + [IMAGE] * 6 + [TEXT] + [IMAGE] * 8 + [TEXT] * 3,
        [TEXT] + [IMAGE] * 9 + [TEXT] * 2,
    ]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    want, delta = model.get_rope_index(
        ids, mm_token_type_ids=(ids == IMAGE).int(), attention_mask=mask,
        image_grid_thw=torch.tensor([(t, 2 * h, 2 * w) for t, h, w in grids]),
    )  # fmt: skip
    pad = length - len(rows[1])
    got = positions(model_type, mask, [
        patch(0, 2, grids[0], list(range(6))), patch(0, 9, grids[1], list(range(8))),
        patch(1, pad + 1, grids[2], list(range(9))),
    ])  # fmt: skip
    assert got.shape == (4, 2, length)
    assert torch.equal(got[1:][:, mask.bool()], want[:, mask.bool()])
    assert torch.equal(got[0][mask.bool()], (mask.cumsum(-1) - 1)[mask.bool()])
    ahead = got[1:].amax((0, 2)) + 1 - mask.sum(-1)
    assert ahead.tolist() == delta[:, 0].tolist()


def test_foreign_tokens_without_a_grid_have_three_equal_numbers() -> None:
    mask = torch.ones(1, 12, dtype=torch.long)
    got = positions("qwen2_vl", mask, [patch(0, 1, None, [0, 1, 2]), patch(0, 6, (1, 2, 2), [0, 1, 2, 3])])[1:]
    #        text, no grid, text,  grid of 2 x 2, text
    time = [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 8, 9]
    rows = [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 9]
    columns = [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9]
    assert got[:, 0].tolist() == [time, rows, columns]


def test_pruned_tokens_keep_their_coordinates() -> None:
    mask = torch.ones(1, 6, dtype=torch.long)
    got = positions("qwen2_vl", mask, [patch(0, 1, (1, 4, 5), [2, 7, 19])])[1:, 0]
    cells = np.array([divmod(cell, 5) for cell in (2, 7, 19)])
    assert got[0].tolist() == [0, 1, 1, 1, 6, 7]  # the text goes on behind the larger side of the whole grid
    assert got[1].tolist() == [0, *(1 + cells[:, 0]), 6, 7]
    assert got[2].tolist() == [0, *(1 + cells[:, 1]), 6, 7]


def test_placeholders_that_stayed_empty_take_no_room() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0, 1]])
    got = positions("qwen2_vl", mask, [patch(0, 1, None, [0, 1])])[1:, 0]
    assert got.tolist() == [[0, 1, 2, 0, 0, 3]] * 3
