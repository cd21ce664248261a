import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods import sce as module
from fuse.methods.sce import sce
from tests.methods.pieces import in_pieces

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)


def oracle(tensors, base, select_topk=1.0):
    """The merge, and where the elected sign is too close to call in float32."""
    start = base.double().numpy()
    deltas = np.stack([tensor.double().numpy() for tensor in tensors]) - start
    if select_topk < 1:
        spread = deltas.var(0) * np.ptp(deltas, axis=0).astype(bool)
        keep = int(select_topk * np.count_nonzero(spread))
        stays = np.zeros(spread.size, bool)
        stays[np.argsort(-spread.ravel(), kind="stable")[:keep]] = True
        deltas = deltas * stays.reshape(spread.shape)
    squares = (deltas**2).reshape(len(deltas), -1).sum(1)
    shares = (squares / (squares.sum() or 1)).reshape(-1, *[1] * base.ndim)
    total = deltas.sum(0)
    agrees = np.sign(deltas) == np.where(total >= 0, 1, -1)
    share = (shares * agrees).sum(0)
    unsure = (np.abs(total) < 1e-6 * np.abs(deltas).sum(0)) & deltas.any(0)
    return start + (shares * deltas * agrees).sum(0) / np.where(share == 0, 1, share), unsure


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("select_topk", [1, 0.5, 0.1, 0.001, 0])
@pytest.mark.parametrize("count", [2, 4])
def test_oracle(draw, close, dtype, select_topk, count):
    base, *tensors = draw(1, count + 1, (40, 50), dtype)
    result, (expected, unsure) = sce(tensors, base, select_topk=select_topk), oracle(tensors, base, select_topk)
    # task vectors of bfloat16 lie on a coarse grid, so that many cancel and many variances are equal but for rounding
    open_ = unsure | (result.numpy() == base.float().numpy()) ^ (expected == base.double().numpy())
    assert open_.sum() <= 0.02 * open_.size
    close(result[~torch.from_numpy(open_)], expected[~open_], atol=2e-5)


@pytest.mark.parametrize("select_topk", [1.0, 0.77, 0.3, 0.01, 0.0])
@pytest.mark.parametrize("shape", [(65, 33), (50,), (4, 5, 6)])
def test_mergekit(draw, select_topk, shape):
    base, *tensors = draw(2, 4, shape, torch.float64)
    parameters = {"select_topk": select_topk}
    theirs = merge_tensors([base, *tensors], "sce", parameters=parameters, base_index=0, dtype=torch.float64)
    torch.testing.assert_close(sce(tensors, base, select_topk=select_topk), theirs)


def test_elements_that_all_members_share_are_not_selected_as_in_mergekit(draw):
    base, *tensors = draw(3, 3, dtype=torch.float64)
    for tensor in tensors:
        tensor[:4] = tensors[0][:4]
    for select_topk in (0.2, 0.9, 1.0):
        parameters = {"select_topk": select_topk}
        theirs = merge_tensors([base, *tensors], "sce", parameters=parameters, base_index=0, dtype=torch.float64)
        ours = sce(tensors, base, select_topk=select_topk)
        torch.testing.assert_close(ours, theirs)
        assert torch.equal(ours[:4], base[:4]) == (select_topk < 1)


@given(seeds, st.floats(0, 1))
def test_as_many_change_as_select_topk_says(draw, seed, share):
    base, *tensors = draw(seed, 3)
    changed = sce(tensors, base, select_topk=share) != base
    assert changed.sum() == (63 if share == 1 else int(share * 63))


def test_the_first_stay_among_equal_variances():
    one, other = torch.tensor([1.0, 2, 1, 3, 1]), torch.zeros(5)
    result = sce([one, other], torch.zeros(5), select_topk=0.6)
    assert result.tolist() == [1, 2, 0, 3, 0]


@given(seeds, st.randoms())
def test_order_of_members_does_not_matter(draw, close, seed, random):
    base, *tensors = draw(seed, 4)
    one = sce(tensors, base, select_topk=0.5)
    _, unsure = oracle(tensors, base, 0.5)
    random.shuffle(tensors)
    other = sce(tensors, base, select_topk=0.5)
    same = torch.isclose(one, other, rtol=1e-5, atol=1e-5) | torch.from_numpy(unsure)
    assert (~same).sum() <= 2  # two that are equally varied but for rounding


@given(seeds, st.sampled_from(DTYPES))
def test_one_member_or_twice_the_same_is_that_member(draw, close, seed, dtype):
    base, tensor = draw(seed, 2, dtype=dtype)
    close(sce([tensor], base), tensor.double().numpy())
    close(sce([tensor, tensor], base), tensor.double().numpy())


@given(seeds, st.integers(1, 70), st.sampled_from([1, 0.4]))
def test_blocks_have_the_same_bytes(draw, seed, step, share):
    base, *tensors = draw(seed, 4, dtype=torch.bfloat16)
    whole = sce(tensors, base, select_topk=share)
    assert torch.equal(in_pieces(module, tensors, base, step, False, select_topk=share), whole)


def test_members_that_are_the_base(draw):
    (base,) = draw(4, 1)
    for share in (1, 0.5):
        assert torch.equal(sce([base, base], base, select_topk=share), base)


def test_nan_stays_visible():
    bad = torch.tensor([torch.nan, 1, 2, 3])
    for share in (1, 0.5, 0):
        result = sce([bad, torch.ones(4)], torch.zeros(4), select_topk=share)
        assert result[0].isnan()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, close, shape):
    base, tensor = draw(5, 2, shape)
    close(sce([tensor], base), tensor.numpy())
    close(sce([tensor], base, select_topk=0.5), base.numpy())


def test_wrong_inputs(draw):
    base, *tensors = draw(6, 2)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="select_topk should be from 0 to 1"):
            sce(tensors, base, select_topk=share)
    with pytest.raises(ValueError, match="at least one tensor"):
        sce([], base)
