import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align import Unmeasurable
from fuse.align.measures.spread import Spread, cosine_of_means, norm_ratio, spread
from tests.align.oracles import about_mean, alike, few, normal, rotation, seeds


def streamed(x, size):
    sums = Spread()
    for start in range(0, len(x), size):
        sums.add(x[start : start + size])
    return sums.value()


def numbers(found):
    return [found.effective_rank, found.participation, found.norm, *found.mean.tolist(), found.samples]


@few
@given(seeds, st.integers(2, 40), st.integers(1, 12), st.integers(1, 17))
def test_oracle_at_once_and_in_batches(seed, n, p, size):
    x = alike(seed, n, p, 1)[0]
    s = np.linalg.svd(about_mean(x), compute_uv=False)
    shares = s[s > 1e-9] / s.sum()
    rank = np.exp(-np.sum(shares * np.log(shares)))
    lengths = np.linalg.norm(x.numpy(), axis=1)
    expected = [rank, np.sum(s**2) ** 2 / np.sum(s**4), lengths.mean(), *x.mean(0).tolist(), n]
    np.testing.assert_allclose(numbers(spread(x)), expected, rtol=1e-6)
    np.testing.assert_allclose(numbers(streamed(x, size)), expected, rtol=1e-6)


def test_known_ranks():
    basis = torch.cat([torch.eye(6), -torch.eye(6)])
    found = spread(basis)
    assert found.effective_rank == pytest.approx(6) and found.participation == pytest.approx(6)
    assert found.norm == 1 and torch.equal(found.mean, torch.zeros(6, dtype=torch.float64))
    line = torch.linspace(0, 1, 9)[:, None] * torch.ones(1, 300)
    for found in (spread(line), streamed(line, 2)):
        assert found.effective_rank == pytest.approx(1, abs=1e-6) and found.participation == pytest.approx(1)
    # singular values 3 and 1: p = 3/4 and 1/4; variances 9 and 1
    uneven = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    assert spread(uneven).effective_rank == pytest.approx(4 / 3**0.75)
    assert spread(uneven).participation == pytest.approx(100 / 82)


@few
@given(seeds, st.floats(1e-2, 1e2), st.floats(-100, 100))
def test_ranks_do_not_change_when_features_are_rotated_scaled_and_moved(seed, scale, offset):
    x = alike(seed, 30, 5, 1)[0]
    moved = spread(scale * x @ rotation(seed, 5) + offset)
    np.testing.assert_allclose(moved[:2], spread(x)[:2], rtol=1e-6)


def test_cosine_of_means():
    x = normal(0, 500, 4) + torch.tensor([3.0, 0, 0, 0])
    y = normal(1, 300, 4) + torch.tensor([3.0, 4, 0, 0])
    expected = float(x.mean(0) @ y.mean(0) / np.sqrt(np.sum(x.numpy().mean(0) ** 2) * np.sum(y.numpy().mean(0) ** 2)))
    assert cosine_of_means(x, y) == pytest.approx(expected, abs=1e-12) == pytest.approx(0.6, abs=0.03)
    assert cosine_of_means(spread(x).mean, streamed(y, 7).mean) == pytest.approx(expected, abs=1e-9)
    assert cosine_of_means(x, 5 * x) == pytest.approx(1) and cosine_of_means(x, -x) == pytest.approx(-1)


def test_norm_ratio():
    x = torch.tensor([[3.0, 4], [0, 1]])
    reference = torch.tensor([[0.0, 2], [2, 0], [0, -2]])
    assert norm_ratio(x, reference) == 1.5
    assert norm_ratio(reference.bfloat16(), reference) == 1


def test_bad_input():
    x = normal(0, 20, 3)
    for measure in (spread, lambda side: streamed(side, 6)):
        with pytest.raises(Unmeasurable, match=r"^spread needs at least 2 samples, not 1$"):
            measure(x[:1])
        with pytest.raises(Unmeasurable, match=r"^the features do not vary over 20 samples$"):
            measure(torch.full((20, 3), 0.1))
        with pytest.raises(Unmeasurable, match=r"^the features hold numbers that are not finite$"):
            measure(torch.full((20, 3), torch.nan))
    with pytest.raises(Unmeasurable, match=r"^spread needs at least 2 samples, not 0$"):
        Spread().value()
    with pytest.raises(Unmeasurable, match=r"^the cosine of means needs a common space, not 3 and 2 features$"):
        cosine_of_means(x, x[:, :2])
    with pytest.raises(Unmeasurable, match=r"^the mean of the second features is zero, which has no direction$"):
        cosine_of_means(x, torch.zeros(4, 3))
    with pytest.raises(Unmeasurable, match=r"^the norm ratio needs a common space, not 3 and 2 features$"):
        norm_ratio(x, x[:, :2])
    with pytest.raises(Unmeasurable, match=r"^the norm ratio needs at least 1 sample, not 0$"):
        norm_ratio(x, x[:0])
    with pytest.raises(Unmeasurable, match=r"^the reference of the norm ratio is zero$"):
        norm_ratio(x, torch.zeros(4, 3))
