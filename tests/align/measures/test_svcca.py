import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align import Unmeasurable
from fuse.align.measures.svcca import svcca
from tests.align.oracles import alike, few, mean_canonical_correlation, normal, rotation, seeds


@few
@given(seeds, st.integers(20, 60), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.6, 0.9, 0.99]))
def test_oracle(seed, n, p, q, share):
    x, y = alike(seed, n, p, q)
    found = svcca(x, y, share=share)
    np.testing.assert_allclose(found[:3], mean_canonical_correlation(x, y, share), rtol=1e-7)


def test_more_features_than_samples():
    x, y = alike(3, 40, 6, 90)
    wide = torch.cat([x @ normal(5, 6, 80), torch.zeros(40, 3)], 1)
    found = svcca(wide, y)
    assert (found.kept_x, found.kept_y) == mean_canonical_correlation(wide, y, 0.99)[1:]
    np.testing.assert_allclose(found.value, mean_canonical_correlation(wide, y, 0.99)[0], rtol=1e-7)


@few
@given(seeds, st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_a_copy_rotated_scaled_and_moved_has_one(seed, scale, offset):
    x = normal(seed, 40, 6)
    for other in (x, scale * x @ rotation(seed, 6) + offset):
        assert svcca(x, other).value == pytest.approx(1, abs=1e-7)


def test_symmetric():
    x, y = alike(1, 60, 5, 9)
    one, two = svcca(x, y), svcca(y, x)
    assert one.value == pytest.approx(two.value, abs=1e-12) and one[1:3] == two[2:0:-1] and one.chance == two.chance


def test_independent_features_have_the_chance_level():
    for n, p, q in [(200, 20, 40), (2000, 20, 40)]:
        found = [svcca(normal(2 * seed, n, p), normal(2 * seed + 1, n, q), share=0.999999) for seed in range(10)]
        assert found[0].kept_x == p and found[0].kept_y == q
        mean = np.mean([each.value for each in found])
        assert 0.9 * found[0].chance < mean <= found[0].chance == (q / (n - 1)) ** 0.5


def test_directions_that_fill_the_samples_are_refused():
    x, y = normal(0, 21, 10), normal(1, 21, 10)
    assert svcca(x, y, share=0.999999).value < 0.95
    with pytest.raises(
        Unmeasurable, match=r"^SVCCA, which keeps 10 and 10 directions, needs at least 21 samples, not 20$"
    ):
        svcca(x[:20], y[:20], share=0.999999)


def test_bad_input():
    x = normal(0, 20, 12)
    assert svcca(torch.cat([x[:, :9]] * 2, 1), x[:, :9]).value == pytest.approx(1)
    with pytest.raises(Unmeasurable) as caught:
        svcca(x, normal(1, 20, 30), share=0.999)
    assert str(caught.value) == "SVCCA, which keeps 12 and 19 directions, needs at least 32 samples, not 20"
    with pytest.raises(Unmeasurable, match=r"^SVCCA needs at least 4 samples, not 3$"):
        svcca(x[:3], x[:3])
    with pytest.raises(Unmeasurable, match=r"^the first features do not vary over 20 samples$"):
        svcca(torch.ones(20, 2), x)
    with pytest.raises(ValueError, match=r"^share should be between 0 and 1, not 1$"):
        svcca(x, x, share=1)
