import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align import Unmeasurable
from fuse.align.measures import table
from fuse.align.measures.cka import batches
from fuse.align.measures.cka import linear as module
from fuse.align.measures.cka.linear import LinearCKA, choose, linear_cka
from tests.align import oracles
from tests.align.oracles import alike, few, linear, normal, rotation, seeds

EXACT = ("covariances", "kernels")


def layers(seed: int, n: int, widths: list[int], spread: float = 1.0) -> list[torch.Tensor]:
    """Layers of one model: they share what they see, and differ in width and in their means."""
    common = normal(seed, n, 5)
    return [common @ normal(seed + p, 5, p) + spread * normal(seed + 7 * p, n, p) + p for p in widths]


def in_batches(cka: LinearCKA, a, b, size: int) -> LinearCKA:
    for start in range(0, len(a[0]), size):
        cka.add([x[start : start + size] for x in a], [y[start : start + size] for y in b])
    return cka


@few
@given(seeds, st.integers(4, 40), st.integers(1, 17), st.sampled_from(EXACT))
def test_oracle(seed, n, size, form):
    a, b = layers(seed, n, [3, 6]), layers(seed, n, [2, 5, 9])
    value = in_batches(LinearCKA(form=form), a, b, size).value()
    assert value.samples == n
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            expected = oracles.cka(linear(x), linear(y))
            np.testing.assert_allclose([value.biased[i, j], value.unbiased[i, j]], expected, rtol=1e-8, atol=1e-8)


def test_the_exact_forms_agree_with_more_and_with_fewer_samples_than_features():
    for n in (30, 300):
        a, b = layers(1, n, [40, 70]), layers(1, n, [90])
        one, two = (in_batches(LinearCKA(form=form), a, b, 64).value() for form in EXACT)
        for found, expected in zip(one[:2], two[:2], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@few
@given(seeds, st.integers(1, 60), st.sampled_from(EXACT))
def test_the_size_of_batches_does_not_matter(seed, size, form):
    a, b = layers(seed, 60, [4, 7]), layers(seed, 60, [6])
    whole, parts = (in_batches(LinearCKA(form=form), a, b, step).value() for step in (60, size))
    for found, expected in zip(parts[:2], whole[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_a_batch_larger_than_the_rows_at_a_time_is_split(monkeypatch):
    a, b = layers(3, 50, [4]), layers(3, 50, [6])
    whole = in_batches(LinearCKA(), a, b, 50).value()
    monkeypatch.setattr(module, "ROWS", 7)
    torch.testing.assert_close(in_batches(LinearCKA(), a, b, 50).value().unbiased, whole.unbiased)


@pytest.mark.parametrize("form", EXACT)
def test_batches_whose_means_are_far_apart_lose_no_digits(form):
    # each batch lies 1000 spreads from the one before it, and all of them 100,000 from zero
    x, y = alike(5, 64, 6, 4)
    steps = torch.arange(64)[:, None] // 8 * 1000.0
    x, y = x + steps + 1e5, y - steps
    expected = oracles.cka(linear(x - x.mean(0)), linear(y - y.mean(0)))
    value = in_batches(LinearCKA(form=form), [x], [y], 8).value()
    np.testing.assert_allclose([value.biased.item(), value.unbiased.item()], expected, rtol=1e-9)
    within = x - steps - x[:8].mean(0), y + steps
    apart = in_batches(LinearCKA(form=form), [within[0] + 1e5], [within[1] + 1e5], 8).value()
    expected = oracles.cka(*(linear(side - side.mean(0)) for side in within))
    np.testing.assert_allclose([apart.biased.item(), apart.unbiased.item()], expected, rtol=1e-7)


@few
@given(seeds, st.integers(1, 12), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_a_copy_rotated_scaled_and_moved_has_one(seed, p, scale, offset):
    x = normal(seed, 30, p)
    for other in (x, scale * x @ rotation(seed, p) + offset, scale * x):
        np.testing.assert_allclose(linear_cka(x, other), [1, 1], atol=1e-8)


@few
@given(seeds, st.integers(4, 30), st.integers(1, 9), st.integers(1, 9))
def test_symmetric_and_within_its_range(seed, n, p, q):
    x, y = alike(seed, n, p, q)
    value = linear_cka(x, y)
    np.testing.assert_allclose(value, linear_cka(y, x), atol=1e-12)
    assert 0 <= value[0] <= 1 and -1 <= value[1] <= 1


def test_independent_noise_is_near_zero_where_it_is_not_biased():
    biased, unbiased = linear_cka(normal(0, 400, 384), normal(1, 400, 384))
    assert abs(unbiased) < 0.01 and biased > 0.4
    few_samples = [linear_cka(normal(2 * seed, 20, 100), normal(2 * seed + 1, 20, 100)) for seed in range(300)]
    means = np.mean(few_samples, axis=0)
    assert means[0] > 0.8 and abs(means[1]) < 0.01


def test_float32_and_bfloat16_features_are_measured_in_float64():
    x, y = alike(2, 50, 8, 6)
    for dtype in (torch.float32, torch.bfloat16):
        small = x.to(dtype), y.to(dtype)
        expected = oracles.cka(*(linear(side) for side in small))
        for form in EXACT:
            value = in_batches(LinearCKA(form=form), [small[0]], [small[1]], 9).value()
            np.testing.assert_allclose([value.biased.item(), value.unbiased.item()], expected, rtol=1e-9)


def test_batches_are_averaged_before_the_ratio_is_taken(monkeypatch):
    monkeypatch.setattr(batches, "BATCH", 8)
    a, b = layers(2, 29, [3, 6]), layers(2, 29, [5])
    sums = np.zeros((2, 3, 2, 1))
    for start in (0, 8, 16):
        k, l = ([linear(x[start : start + 8]) for x in side] for side in (a, b))  # noqa: E741
        for which, hsic in enumerate((oracles.hsic_0, oracles.hsic_1)):
            sums[which] += (
                [[[hsic(i, j)] for i in k] for j in l] + [[[hsic(i, i)] for i in k]] + [[[hsic(l[0], l[0])]] * 2]
            )
    expected = sums[:, 0] / np.sqrt(sums[:, 1] * sums[:, 2])
    for size in (3, 8, 29):
        value = in_batches(LinearCKA(form="batches"), a, b, size).value()
        np.testing.assert_allclose([value.biased, value.unbiased], expected, rtol=1e-9)
        assert value.how == "averaged over 3 batches of 8 samples; 5 samples that fill no batch are left out"


def test_batches_of_random_samples_come_near_the_exact_value():
    a, b = layers(4, 4096, [30]), layers(4, 4096, [50])
    exact, averaged = (in_batches(LinearCKA(form=form), a, b, 1000).value() for form in ("covariances", "batches"))
    torch.testing.assert_close(averaged.unbiased, exact.unbiased, rtol=0, atol=2e-3)
    assert averaged.how == "averaged over 8 batches of 512 samples"


def test_fewer_samples_than_a_batch_are_one_batch():
    a, b = layers(4, 50, [3]), layers(4, 50, [5])
    exact, averaged = (in_batches(LinearCKA(form=form), a, b, 9).value() for form in ("kernels", "batches"))
    torch.testing.assert_close(averaged.unbiased, exact.unbiased)
    assert averaged.how == "exact, over 50 samples, in one batch"


def test_what_the_values_are_taken_over_is_said():
    a = layers(4, 50, [3])
    assert in_batches(LinearCKA(), a, a, 50).value().how == "exact, over 50 samples, from sums of features by features"
    kernels = in_batches(LinearCKA(form="kernels"), a, a, 50).value()
    assert kernels.how == "exact, over 50 samples, from matrices of samples by samples"


def test_the_smaller_form_is_chosen():
    small = [384] * 12
    assert choose(small, small, 256_000) == "covariances"  # 0.2 GB
    assert choose(small, small, None) == "covariances"
    assert choose([4096] * 4, [4096] * 4, 500) == "kernels"  # 0.1 GB instead of 3
    assert choose([1024] * 24, [1024] * 24, 256_000) == "batches"  # 5 GB
    assert choose([1024] * 24, [1024] * 24, 256_000, 6 << 30) == "covariances"
    cka = LinearCKA(20)
    cka.add([normal(0, 20, 30)], [normal(1, 20, 40)])
    assert cka.form == "kernels"


@pytest.mark.parametrize("form", module.FORMS)
def test_features_that_do_not_vary(form):
    x, flat = normal(0, 20, 5), torch.full((20, 3), 0.1)
    flat[1] += 1e-9
    for a, b, whose in [
        ([flat], [x], "the first features"),
        ([x, flat], [x], "the first features at layer 1"),
        ([x], [flat, x], "the second features at layer 0"),
    ]:
        with pytest.raises(Unmeasurable) as caught:
            in_batches(LinearCKA(form=form), a, b, 6).value()
        assert str(caught.value) == f"{whose} do not vary over 20 samples"


@pytest.mark.parametrize("form", module.FORMS)
def test_features_that_are_not_finite(form):
    x, bad = normal(0, 20, 5), normal(1, 20, 5)
    for number in (torch.nan, torch.inf):
        bad[7, 3] = number
        with pytest.raises(Unmeasurable, match=r"^the second features hold numbers that are not finite$"):
            in_batches(LinearCKA(form=form), [x], [bad], 6).value()


def test_too_few_samples():
    with pytest.raises(Unmeasurable, match=r"^CKA needs at least 4 samples, not 3$"):
        linear_cka(normal(0, 3, 2), normal(1, 3, 2))
    with pytest.raises(Unmeasurable, match=r"^CKA needs at least 4 samples, not 0$"):
        LinearCKA().value()
    assert table.MEASURES["cka"].least(2, 2, 10) == 4


@pytest.mark.parametrize("far", [torch.eye(6), normal(2, 6, 2) * torch.tensor([[1e8], *[[1.0]] * 5])])
def test_samples_equally_far_apart_and_one_far_from_all(far):
    with pytest.raises(Unmeasurable) as caught:
        linear_cka(far, normal(1, 6, 2))
    assert str(caught.value) == (
        "unbiased CKA of the first features is not defined, as its samples are all equally far apart, or one lies far "
        "from all others"
    )


def test_layers_that_do_not_belong_together():
    x, y = normal(0, 9, 3), normal(1, 8, 3)
    with pytest.raises(ValueError, match=r"^all layers of both sides should have the same samples$"):
        LinearCKA().add([x], [y])
    cka = LinearCKA()
    cka.add([x], [x])
    with pytest.raises(
        ValueError, match=r"^layers should stay as wide as in the first batch, \[\[3\], \[3\]\], not \[\[3\], \[2\]\]$"
    ):
        cka.add([x], [x[:, :2]])
    with pytest.raises(ValueError, match=r"^each side should have at least one layer, and each layer a matrix of"):
        LinearCKA().add([], [x])
    with pytest.raises(ValueError, match=r"^form should be one of covariances, kernels, batches, not exact$"):
        LinearCKA(form="exact")
