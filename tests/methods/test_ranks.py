import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods.drop import drop_at_random
from fuse.methods.random import key, uniform
from fuse.methods.ranks import ascending, drop_by_rank

seeds = st.integers(0, 10_000)


def chances(rows, density, epsilon):
    """numpy: the probability of each element of (rows, width) to stay."""
    order = np.argsort(np.abs(rows), axis=-1, kind="stable")
    ranks = np.argsort(order, axis=-1, kind="stable")
    width = rows.shape[-1]
    return density - epsilon + 2 * epsilon * ranks / (width - 1) if width > 1 else np.full(rows.shape, density)


@given(seeds, st.integers(1, 6), st.integers(1, 300), st.sampled_from([torch.float32, torch.float64]))
def test_ascending_is_a_stable_sort(seed, rows, width, dtype):
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-45, 10, (rows, width), generator=generator)  # denormals and equals among them
    numbers = (torch.randint(-3, 4, (rows, width), generator=generator) * scale).to(dtype)
    expected = np.argsort(np.abs(numbers.numpy()), axis=-1, kind="stable")
    assert np.array_equal(ascending(numbers).numpy(), expected)


@pytest.mark.parametrize("shape", [(40, 50), (60,), (4, 5, 6), (9, 1)])
@pytest.mark.parametrize("rescale", [True, False])
def test_oracle(draw, close, shape, rescale):
    (delta,) = draw(1, 1, shape)
    rows = delta.numpy().reshape(-1, shape[-1])
    chance = chances(rows, 0.6, 0.25)
    stays = uniform(7, delta.numel()).numpy().reshape(rows.shape) < chance.astype(np.float32)
    expected = np.where(stays, rows / (chance if rescale else 1), 0).reshape(shape)
    close(drop_by_rank(delta.clone(), 0.6, 0.25, rescale, 7, 0), expected)


@given(seeds, st.floats(0.1, 1), st.booleans())
def test_without_epsilon_it_is_a_drop_by_chance_alone(draw, seed, density, rescale):
    (delta,) = draw(seed, 1)
    ours = drop_by_rank(delta.clone(), density, 0, rescale, 5, 3)
    torch.testing.assert_close(
        ours,
        drop_at_random(delta, torch.zeros_like(delta), delta.dtype, density=density, rescale=rescale, key=5, offset=3),
    )


def test_the_mean_over_keys_is_the_task_vector(draw):
    (delta,) = draw(2, 1)
    runs = 2000
    dropped = [drop_by_rank(delta.clone(), 0.5, 0.3, True, key(seed, "w", "a"), 0) for seed in range(runs)]
    chance = torch.from_numpy(chances(delta.numpy(), 0.5, 0.3)).float()
    spread = delta.abs() * ((1 - chance) / chance / runs) ** 0.5
    assert ((torch.stack(dropped).mean(0) - delta) / spread).abs().max() < 5


def test_mergekit_keeps_as_often():
    """The rates at which each rank of a row stays, over many rows."""
    rows, width = 20_000, 6
    delta = torch.tensor([3.0, -1, 6, 2, -5, 4]).expand(rows, width).contiguous()
    ours = drop_by_rank(delta.clone(), 0.5, 0.3, False, 1, 0)
    theirs = merge_tensors(
        [torch.zeros_like(delta), delta], "della", base_index=0, dtype=torch.float32,
        parameters={"weight": [1.0], "density": 0.5, "epsilon": 0.3, "rescale": False},
    )  # fmt: skip
    expected = torch.from_numpy(chances(delta[:1].numpy(), 0.5, 0.3))[0]
    for kept in (ours != 0, theirs != 0):
        assert ((kept.double().mean(0) - expected).abs() < 5 * (0.25 / rows) ** 0.5).all()


@given(seeds, st.integers(1, 8))
def test_rows_have_the_same_bytes_alone(draw, seed, step):
    (delta,) = draw(seed, 1)
    whole = drop_by_rank(delta.clone(), 0.5, 0.3, True, 9, 18)
    parts = [
        drop_by_rank(delta[at : at + step].clone(), 0.5, 0.3, True, 9, 18 + at * 9) for at in range(0, len(delta), step)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_the_whole_range():
    delta = torch.arange(1.0, 9).expand(1000, 8).contiguous()
    kept = drop_by_rank(delta.clone(), 0.5, 0.5 - 1e-9, False, 3, 0) != 0
    assert not kept[:, 0].any() and kept[:, -1].all()
    assert torch.equal(drop_by_rank(delta.clone(), 1, 0, True, 3, 0), delta)


def test_nan_stays():
    delta = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0]])
    for seed in range(10):
        assert not drop_by_rank(delta.clone(), 0.5, 0.3, True, seed, 0)[:, 0].isfinite().any()
