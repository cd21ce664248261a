import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods import blocks
from fuse.methods import ties as module
from fuse.methods.task_arithmetic import task_arithmetic
from fuse.methods.ties import ties
from fuse.methods.trim import Cut, find_cut, kept_count, trim

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)


def trimmed(delta, density):
    """numpy: the largest magnitudes, lowest index first among equals."""
    kept = np.zeros_like(delta)
    order = np.argsort(-np.abs(delta.ravel()), kind="stable")[: max(1, int(density * delta.size))]
    kept.ravel()[order] = delta.ravel()[order]
    return kept


def oracle(tensors, base, weights, density, *, lambda_=1.0, normalize=True):
    """The merge, and where the elected sign is too close to call in float32."""
    start = base.float().numpy()
    shares = np.reshape(weights, (-1, *[1] * base.ndim)).astype(np.float64)
    deltas = [trimmed(t.float().numpy() - start, d) for t, d in zip(tensors, density, strict=True)]
    weighted = shares * np.stack(deltas).astype(np.float64)
    total = weighted.sum(0)
    agrees = np.sign(weighted) == np.where(total >= 0, 1, -1)
    share = (shares * agrees).sum(0)
    merged = (weighted * agrees).sum(0) / (np.where(share == 0, 1, share) if normalize else 1)
    unsure = (np.abs(total) < 1e-6 * np.abs(weighted).sum(0)) & weighted.any(0)
    return start + lambda_ * merged, unsure


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("density", [[0.2, 0.5, 0.9], [1, 1, 1], [0.001, 0.29, 1]])
def test_oracle(draw, close, dtype, normalize, density):
    base, *tensors = draw(1, 4, (40, 50), dtype)
    weights = [0.5, 1.25, -0.3]
    result = ties(tensors, base, weights=weights, density=density, lambda_=0.7, normalize=normalize)
    expected, unsure = oracle(tensors, base, weights, density, lambda_=0.7, normalize=normalize)
    assert unsure.sum() <= 2
    close(result[~torch.from_numpy(unsure)], expected[~unsure])


def test_float64_stays_float64(draw):
    base, *tensors = draw(2, 3, dtype=torch.float64)
    result = ties(tensors, base, weights=[1, 2], density=[0.5, 0.5])
    assert result.dtype == torch.float64
    expected, unsure = oracle(tensors, base, [1, 2], [0.5, 0.5])
    assert not unsure.any()
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@given(seeds, st.sampled_from([torch.float32, torch.float64]), st.floats(0.001, 1), st.integers(1, 60))
def test_exactly_k_are_kept_lowest_index_first(seed, dtype, density, size):
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-45, 10, (size,), generator=generator)  # denormals and zeros among them
    delta = (torch.randint(-3, 4, (size,), generator=generator) * scale).to(dtype)
    keep = kept_count(density, size)
    ours = delta.clone()
    for part, cut_size in [(ours, size), (delta.clone(), 7)]:
        cut = find_cut(lambda part=part, n=cut_size: part.split(n), keep, dtype)
        for number, block in enumerate(part.split(cut_size)):
            trim(block, cut, number * cut_size)
        assert np.array_equal(part.numpy(), trimmed(delta.numpy(), density))


def test_equal_magnitudes_are_kept_in_order():
    delta = torch.tensor([1.0, -1, 2, 1, -1, 1])
    cut = find_cut(lambda: [delta], 3, torch.float32)
    assert cut == Cut(bits=0x3F800000, last=1)
    trim(delta, cut, 0)
    assert delta.tolist() == [1, -1, 2, 0, 0, 0]


@given(seeds, st.sampled_from(DTYPES))
def test_one_member_of_full_density_is_that_member(draw, seed, dtype):
    base, tensor = draw(seed, 2, dtype=dtype)
    for normalize in (True, False):
        result = ties([tensor], base, weights=[1], density=[1], normalize=normalize)
        torch.testing.assert_close(result, tensor.float(), rtol=0, atol=1e-6)


@given(seeds, st.lists(st.floats(0.01, 2), min_size=1, max_size=4))
def test_where_all_signs_agree_it_is_the_weighted_mean(draw, close, seed, weights):
    base, *tensors = draw(seed, len(weights) + 1)
    sign = tensors[0].sub(base).sign()
    tensors = [base + tensor.sub(base).abs() * sign for tensor in tensors]
    result = ties(tensors, base, weights=weights, density=[1] * len(weights))
    close(result, task_arithmetic(tensors, base, weights=weights, normalize=True).numpy(), atol=5e-6)


@given(seeds, st.randoms())
def test_order_of_members_does_not_matter(draw, close, seed, random):
    base, *tensors = draw(seed, 4)
    members = list(zip(tensors, [0.3, 1, 0.7], [0.3, 0.8, 1], strict=True))
    one = ties(tensors, base, weights=[0.3, 1, 0.7], density=[0.3, 0.8, 1])
    _, unsure = oracle(tensors, base, [0.3, 1, 0.7], [0.3, 0.8, 1])
    random.shuffle(members)
    tensors, weights, density = zip(*members, strict=True)
    other = ties(tensors, base, weights=weights, density=density)
    close(other[~torch.from_numpy(unsure)], one.numpy()[~unsure])


@given(seeds, st.floats(0.01, 100))
def test_scale_of_normalized_weights_does_not_matter(draw, close, seed, scale):
    base, *tensors = draw(seed, 4)
    one = ties(tensors, base, weights=[1, 2, 4], density=[0.5] * 3)
    _, unsure = oracle(tensors, base, [1, 2, 4], [0.5] * 3)
    two = ties(tensors, base, weights=[scale, 2 * scale, 4 * scale], density=[0.5] * 3)
    close(two[~torch.from_numpy(unsure)], one.numpy()[~unsure])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.77, 1.0])
def test_mergekit(draw, close, dtype, normalize, density):
    base, *tensors = draw(3, 4, (65, 33), dtype)
    weights = [0.7, 0.2, 0.4]
    parameters = {"weight": weights, "density": density, "normalize": normalize, "lambda": 0.6}
    theirs = merge_tensors([base, *tensors], "ties", parameters=parameters, base_index=0, dtype=torch.float32)
    ours = ties(tensors, base, weights=weights, density=[density] * 3, normalize=normalize, lambda_=0.6)
    # mergekit leaves open which of the magnitudes exactly on the threshold stay, where they do not all stay
    open_ = torch.from_numpy(oracle(tensors, base, weights, [density] * 3)[1])
    assert open_.sum() <= 0.005 * base.numel()
    for tensor in tensors:
        magnitude = (tensor.float() - base.float()).abs()
        keep = kept_count(density, magnitude.numel())
        threshold = magnitude.view(-1).sort(descending=True).values[keep - 1]
        if (magnitude >= threshold).sum() > keep:
            open_ |= magnitude == threshold
    # bfloat16 task vectors of a base near 1 lie on a coarse grid, so that many share the threshold
    share = {torch.float32: 0, torch.float16: 0.02, torch.bfloat16: 0.08}[dtype]
    assert open_.sum() <= (share if density < 1 else 0.005) * base.numel()
    close(ours[~open_], theirs[~open_].numpy())


@pytest.mark.parametrize("rate", [0.5, 0.8])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_golden(golden, rate, part):
    """Their rule zeroes the ``int(size * rate) - 1`` smallest, so our density is what that leaves."""
    tensors, about = golden(f"merge_ties_{rate}")
    assert about["constructor"]["param_value_mask_rate"] == rate
    base = tensors[f"input.base_{part}"]
    members = [tensors[f"input.finetuned_{part}_{i}"] for i in range(3)]
    keep = base.numel() - int(base.numel() * rate) + 1
    density = keep / base.numel()
    assert kept_count(density, base.numel()) == keep
    ones, densities = [1] * 3, [density] * 3
    result = ties(members, base, weights=ones, density=densities)
    assert (result - tensors[f"output.merged_{part}"]).abs().max() <= float(about["tolerance"])
    if part == "weight":
        vectors = [tensors[f"input.task_vector_{i}"] for i in range(3)]
        delta = ties(vectors, torch.zeros_like(base), weights=ones, density=densities)
        assert (delta - tensors["output.merged_delta"]).abs().max() <= float(about["tolerance"])


@settings(max_examples=20)
@given(seeds, st.integers(1, 70))
def test_the_inner_block_size_does_not_change_a_byte(draw, seed, block):
    base, *tensors = draw(seed, 4, dtype=torch.bfloat16)
    whole = ties(tensors, base, weights=[1, 2, 3], density=[0.2, 0.5, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HISTOGRAM_BLOCK", block)
        patch.setattr(blocks, "BLOCK", block)
        assert torch.equal(ties(tensors, base, weights=[1, 2, 3], density=[0.2, 0.5, 1]), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_untouched(draw, dtype):
    tensors = draw(5, 3, dtype=dtype)
    before = [tensor.clone() for tensor in tensors]
    ties(tensors[1:], tensors[0], weights=[1, 1], density=[0.5, 1]).zero_()
    assert all(map(torch.equal, tensors, before))


def test_transposed_input(draw):
    base, *tensors = draw(6, 3, (4, 6), torch.bfloat16)
    whole = ties(tensors, base, weights=[1, 1], density=[0.3, 0.3])
    turned = [tensor.T.contiguous().T for tensor in [base, *tensors]]
    assert torch.equal(ties(turned[1:], turned[0], weights=[1, 1], density=[0.3, 0.3]), whole)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, close, shape):
    base, *tensors = draw(7, 3, shape)
    result = ties(tensors, base, weights=[1, 3], density=[0.1, 0.5])
    close(result, oracle(tensors, base, [1, 3], [0.1, 0.5])[0] if base.numel() else base.numpy())


def test_zero_identical_opposite_and_denormal(draw):
    (base,) = draw(8, 1)
    zero = torch.zeros_like(base)
    for density in (0.3, 1):
        assert torch.equal(ties([base, base], base, weights=[1, 1], density=[density] * 2), base)
    # a sum of exactly zero elects plus
    assert torch.equal(ties([base, -base], zero, weights=[1, 1], density=[1, 1]), base.abs())
    tiny = torch.tensor([2.0**-149, -(2.0**-140), 2.0**-145])
    result = ties([tiny], torch.zeros(3), weights=[1], density=[0.67])
    assert torch.equal(result, tiny * torch.tensor([0, 1, 1]))


def test_nan_stays_visible():
    bad = torch.tensor([torch.nan, 1, 2, 3])
    for density in (0.5, 1):
        result = ties([bad, torch.ones(4)], torch.zeros(4), weights=[1, 1], density=[density] * 2)
        assert result.isnan().tolist() == [True, False, False, False]


def test_wrong_inputs(draw):
    base, *tensors = draw(9, 3)
    for density in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="density should be greater than 0 and at most 1"):
            ties(tensors, base, weights=[1, 1], density=[1, density])
    with pytest.raises(ValueError, match="density has 1 values for 2 tensors"):
        ties(tensors, base, weights=[1, 1], density=[1])
    with pytest.raises(ValueError, match="at least one tensor"):
        ties([], base, weights=[], density=[])
