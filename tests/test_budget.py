"""Token budgets: shares of runs, pooled cells, and which tokens stay, against float64 numpy."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.branches.budget import budgeted_layout, present, runs_of, share
from fuse.branches.cells import bands, kept_cells, pooled_cells, run_grids
from fuse.branches.select import keep_tokens, least_similar, pool, top
from fuse.errors import CheckpointError, RecipeError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RUNS = st.lists(st.integers(1, 60), min_size=1, max_size=12)
GRIDS = st.tuples(st.integers(1, 13), st.integers(1, 13))


def numbers(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)))


# Shares


@pytest.mark.parametrize(("runs", "budget", "kept"), [
    ((576,), None, (576,)), ((576,), 576, (576,)), ((576,), 9999, (576,)), ((576,), 1, (1,)), ((), 5, ()), ((), None, ()),
    ((576, 144), 100, (80, 20)), ((576, 144, 1), 100, (79, 20, 1)), ((10, 10, 10), 10, (4, 3, 3)), ((10, 10, 10), 11, (4, 4, 3)),
    ((1, 1, 1000), 3, (1, 1, 1)), ((1, 1, 1000), 500, (1, 1, 498)), ((5, 0, 5), 4, (2, 0, 2)), ((3, 3, 2), 7, (3, 2, 2)),
])  # fmt: skip
def test_shares(runs: tuple[int, ...], budget: int | None, kept: tuple[int, ...]) -> None:
    assert share(runs, budget) == kept


@given(RUNS, st.integers(1, 800))
def test_laws_of_shares(runs: list[int], budget: int) -> None:
    if budget < len(runs) and budget < sum(runs):
        with pytest.raises(RecipeError):
            share(runs, budget)
        return
    kept = share(runs, budget)
    assert sum(kept) == min(budget, sum(runs))
    assert all(1 <= k <= length for k, length in zip(kept, runs, strict=True))
    quota = budget / sum(runs)
    if all(length * quota >= 1 for length in runs) and quota <= 1:
        assert all(abs(k - length * quota) < 1 for k, length in zip(kept, runs, strict=True))
    by_length = sorted(zip(runs, kept, strict=True))
    assert all(a[1] <= b[1] for a, b in pairwise(by_length) if a[0] < b[0])


def test_a_budget_below_one_token_a_run() -> None:
    with pytest.raises(RecipeError) as caught:
        share((256,) * 13, 12, where="recipe.yaml:9:5")
    assert str(caught.value) == (
        "recipe.yaml:9:5: max_tokens 12 is too few: this branch writes one image in 13 runs of visual tokens, and each keeps"
        " at least one (max_tokens 13 is the smallest that works here)"
    )


def test_layouts_keep_their_markers() -> None:
    layout = ("<img>", 64, "\n", 64, "</img>")
    assert budgeted_layout(layout, 33) == ("<img>", 17, "\n", 16, "</img>")
    assert budgeted_layout(layout, None) == layout
    assert runs_of(layout) == (64, 64)


def test_present_tokens_fill_the_runs_in_order() -> None:
    assert present((4, 6, 2), (2, 3, 1), 7) == ((4, 3, 0), (2, 3, 0))
    assert present((4, 6, 2), (2, 3, 1), 12) == ((4, 6, 2), (2, 3, 1))
    assert present((4, 6), (4, 6), 1) == ((1, 0), (1, 0))


def test_counting_needs_no_torch() -> None:
    code = "import sys, fuse.branches.budget, fuse.branches.cells; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Cells


@given(GRIDS, st.data())
def test_cells_of_a_grid(grid: tuple[int, int], data: st.DataObject) -> None:
    n = grid[0] * grid[1]
    keep = data.draw(st.integers(1, n))
    cells = pooled_cells(n, keep, grid)
    assert len(cells) == keep
    assert {place for cell in cells for place in cell} == set(range(n))
    found = bands(keep, grid)
    assert all(len(rows) > 0 and all(len(columns) > 0 for columns in cut) for rows, cut in found)
    counts = [len(cut) for _, cut in found]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("keep", "shape"), [
    (144, [12] * 12), (64, [8] * 8), (1, [1]), (97, [9, 10, 10, 9, 10, 10, 9, 10, 10, 10]), (576, [24] * 24), (2, [2]),
])  # fmt: skip
def test_cells_are_nearly_square(keep: int, shape: list[int]) -> None:
    assert [len(cut) for _, cut in bands(keep, (24, 24))] == shape


def test_grids_of_runs() -> None:
    assert run_grids((576,), (1, 24, 24)) == [(24, 24)]
    assert run_grids((8, 8, 8), (1, 3, 8)) == [(1, 8), (1, 8), (1, 8)]
    assert run_grids((16, 8), (1, 3, 8)) == [(2, 8), (1, 8)]
    assert run_grids((10, 14), (1, 3, 8)) == [None, None]
    assert run_grids((8, 8), (2, 1, 8)) == [None, None]
    assert run_grids((577,), None) == [None]


# Pooling


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("grid", "keep"), [((24, 24), 144), ((24, 24), 97), ((3, 7), 5), ((7, 3), 20), ((1, 9), 4), ((5, 5), 1)])  # fmt: skip
def test_pooling_is_the_mean_of_its_cells(grid: tuple[int, int], keep: int, device: str) -> None:
    n = grid[0] * grid[1]
    tokens = numbers(n, 6)
    for shape in (grid, None):
        found, index = pool(tokens.to(device), keep, shape)
        wanted = np.stack([tokens.numpy()[list(cell)].mean(0) for cell in pooled_cells(n, keep, shape)])
        np.testing.assert_allclose(found.cpu().numpy(), wanted, atol=1e-12)
        assert index.tolist() == sorted(set(index.tolist())) and len(index) == keep
        cells = pooled_cells(n, keep, shape)
        assert all(place in cell for place, cell in zip(index.tolist(), cells, strict=True))


def test_pooling_by_a_whole_factor_is_adaptive_average_pooling() -> None:
    tokens = numbers(24 * 18, 5)
    image = tokens.T.reshape(1, 5, 24, 18)
    wanted = torch.nn.functional.adaptive_avg_pool2d(image, (8, 6))[0].flatten(1).T
    found, index = pool(tokens, 48, (24, 18))
    assert torch.allclose(found, wanted, atol=1e-12)
    assert index[:3].tolist() == [18 * 1 + 1, 18 * 1 + 4, 18 * 1 + 7] and index[6].item() == 18 * 4 + 1


def test_half_precision_is_pooled_in_float32() -> None:
    tokens = numbers(4096, 2).to(torch.bfloat16)
    found, _ = pool(tokens, 1)
    assert found.dtype == torch.bfloat16
    np.testing.assert_allclose(found.float().numpy(), tokens.double().numpy().mean(0, keepdims=True), rtol=2**-8)


# Selecting


@pytest.mark.parametrize("device", DEVICES)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 30))
@settings(deadline=None)
def test_top_keeps_the_largest_and_the_earlier_of_equals(device: str, scores: list[int], keep: int) -> None:
    wanted = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])
    assert top(torch.tensor(scores, dtype=torch.float32, device=device), keep).tolist() == wanted


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    def unit(x: np.ndarray) -> np.ndarray:
        length = np.sqrt((x**2).sum(-1, keepdims=True))
        return np.divide(x, length, out=np.zeros_like(x), where=length > 0)

    return unit(a) @ unit(b).T


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_tokens_that_were_said_are_dropped(device: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse.branches.select.CHUNK", chunk)
    tokens, said = numbers(20, 4, seed=1), numbers(9, 4, seed=2)
    likeness = cosines(tokens.numpy(), said.numpy()).max(1)
    wanted = sorted(sorted(range(20), key=lambda i: likeness[i])[:8])
    assert least_similar(tokens.to(device), said.to(device), 8).tolist() == wanted


def test_repeated_tokens_go_first_and_length_does_not_matter() -> None:
    tokens = numbers(6, 5)
    said = torch.stack([tokens[1] * 100, tokens[4] * 1e-3])
    assert least_similar(tokens, said, 4).tolist() == [0, 2, 3, 5]
    assert least_similar(torch.zeros(5, 3), torch.ones(2, 3), 2).tolist() == [0, 1]


def spread(tokens: np.ndarray, keep: int) -> list[int]:
    """Farthest point sampling by hand."""
    table = cosines(tokens, tokens)
    chosen = [int(np.argmax((tokens**2).sum(1)))]
    while len(chosen) < keep:
        rest = [i for i in range(len(tokens)) if i not in chosen]
        chosen.append(min(rest, key=lambda i: (table[i, chosen].max(), i)))
    return sorted(chosen)


@pytest.mark.parametrize("device", DEVICES)
@given(st.integers(1, 25), st.integers(1, 25), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_the_first_branch_is_spread_out(device: str, n: int, keep: int, seed: int) -> None:
    tokens = numbers(n, 4, seed)
    found = least_similar(tokens.to(device), tokens[:0].to(device), keep)
    assert found.tolist() == spread(tokens.numpy(), min(keep, n))


def test_spreading_leaves_out_doubles() -> None:
    tokens = torch.eye(4, dtype=torch.float32)[[0, 0, 1, 1, 2, 3, 3]] * torch.tensor([1, 9, 1, 1, 1, 1, 1])[:, None]
    assert least_similar(tokens, tokens[:0], 4).tolist() == [1, 2, 4, 5]
    assert least_similar(tokens[:1].expand(5, 4), tokens[:0], 3).tolist() == [0, 1, 2]
    assert least_similar(torch.full((4, 2), torch.nan), tokens[:0, :2], 2).shape == (2,)


# One image of a branch


@pytest.mark.parametrize("prune", ["pool", "norm", "cls", "similarity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_are_pruned_one_by_one(prune: str, dtype: torch.dtype) -> None:
    tokens, said = numbers(40, 6).to(dtype), numbers(10, 6, seed=3).to(dtype)
    attention = numbers(40, 1, seed=4)[:, 0].exp()
    runs, shares = (16, 24), share((16, 24), 10)
    found, index = keep_tokens(prune, tokens, runs, shares, attention=attention, said=said, grid=(1, 5, 8))
    assert found.shape == (10, 6) and found.dtype == dtype and index.dtype == torch.int64
    assert index.tolist() == sorted(set(index.tolist()))
    assert sum(index < 16).item() == 4
    if prune == "pool":
        cells = kept_cells("pool", runs, shares, index.tolist(), (1, 5, 8))
        wanted = torch.stack([tokens[list(cell)].double().mean(0) for cell in cells])
        assert torch.allclose(found.double(), wanted, atol=1e-6 if dtype == torch.float32 else 2e-2)
        assert all(place in cell for place, cell in zip(index.tolist(), cells, strict=True))
        return
    score = {
        "norm": (tokens.double() ** 2).sum(1).numpy(), "cls": attention.numpy(),
        "similarity": -cosines(tokens.double().numpy(), said.double().numpy()).max(1),
    }[prune]  # fmt: skip
    wanted = [sorted(range(a, b), key=lambda i: -score[i])[:k] for a, b, k in ((0, 16, shares[0]), (16, 40, shares[1]))]
    assert index.tolist() == sorted(wanted[0] + wanted[1])
    assert torch.equal(found, tokens[index])
    assert kept_cells(prune, runs, shares, index.tolist(), None) == [(i,) for i in index.tolist()]


@pytest.mark.parametrize("prune", ["pool", "norm", "cls", "similarity"])
def test_tokens_that_fit_are_left_alone(prune: str) -> None:
    tokens = numbers(12, 3)
    found, index = keep_tokens(prune, tokens, (8, 4), share((8, 4), 12))
    assert found is tokens and index.tolist() == list(range(12))


@pytest.mark.parametrize("prune", ["pool", "norm", "similarity"])
def test_a_branch_may_give_less_than_its_layout(prune: str) -> None:
    tokens = numbers(7, 3)
    runs, shares = present((4, 6, 2), (2, 3, 1), 7)
    found, index = keep_tokens(prune, tokens, runs, shares)
    assert len(found) == 5 and sum(index < 4) == 2 and index[2:].tolist() == [4, 5, 6]
    assert len(kept_cells(prune, runs, shares, index.tolist(), None)) == 5
    with pytest.raises(ValueError, match=r"^7 tokens for runs of 12 in all$"):
        keep_tokens(prune, tokens, (4, 6, 2), (2, 3, 1))


def test_class_attention_that_is_not_there() -> None:
    with pytest.raises(CheckpointError) as caught:
        keep_tokens("cls", numbers(8, 3), (8,), (4,), name="siglip")
    assert str(caught.value) == (
        "branch siglip: prune: cls needs the attention of a class token, which this branch's encoder does not have"
        " (prune: norm works with every encoder)"
    )
    with pytest.raises(ValueError, match=r"^prune 'best' is not one of pool, norm, cls, similarity$"):
        keep_tokens("best", numbers(8, 3), (8,), (4,))
