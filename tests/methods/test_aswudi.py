import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods.aswudi import RULES, aswudi


def count(rule, values, shape, share):
    """The rules once more, in numpy, over eigenvalues in descending order."""
    p = values / values.sum()
    beta = min(shape) / max(shape)
    threshold = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta * beta + 14 * beta + 1)))
    noise = math.sqrt((1 - beta) ** 2 + beta) if beta < 0.9999 else math.sqrt(2 + math.sqrt(3))
    lower_median = np.sort(np.sqrt(values))[(len(values) - 1) // 2]
    return {
        "stable_rank": lambda: math.ceil((values**2).sum() / values[0] ** 2),
        "entropy": lambda: math.ceil(math.exp(-(p * np.log(p)).sum())),
        "participation": lambda: math.ceil(values.sum() ** 2 / (values**2).sum()),
        "participation_sqrt": lambda: math.ceil(np.sqrt(values).sum() ** 2 / values.sum()),
        "cumvar": lambda: int((p.cumsum() < share).sum()) + 1,
        "gavish_donoho": lambda: int((np.sqrt(values) > threshold / noise * lower_median).sum()),
    }[rule]()


def oracle(tensors, base, rule, init="sum", share=0.9):
    start = base.double().numpy()
    taus = [tensor.double().numpy() - start for tensor in tensors]
    c = sum(tau.T @ tau / (tau**2).sum() for tau in taus)
    d = sum(tau @ tau.T @ tau / (tau**2).sum() for tau in taus)
    values, vectors = np.linalg.eigh(c)
    values = np.maximum(values, 1e-8)
    kept = max(1, min(len(values), count(rule, values[::-1], base.shape, share)))
    strong, inverse = vectors[:, -kept:], np.diag(1 / values[-kept:])
    theta = {"sum": sum(taus), "mean": sum(taus) / len(taus), "zero": 0 * taus[0]}[init]
    return start + theta - theta @ strong @ strong.T + d @ strong @ inverse @ strong.T


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("init", ["sum", "mean", "zero"])
@pytest.mark.parametrize("shape", [(12, 15), (15, 12), (8, 8)])
def test_oracle(draw, close, rule, init, shape):
    base, *tensors = draw(1, 3, shape)
    close(aswudi(tensors, base, rank=rule, init=init), oracle(tensors, base, rule, init))


@given(st.integers(0, 10_000), st.sampled_from([*RULES]), st.sampled_from([(4, 9), (9, 4), (5, 5)]))
def test_rules(draw, seed, rule, shape):
    (values,) = draw(seed, 1, (shape[1],), torch.float64)
    values = values.abs().add(1e-8).sort(descending=True)[0]
    assert RULES[rule](values, *shape, 0.7) == count(rule, values.numpy(), shape, 0.7)


def test_the_share_of_the_spectrum(draw, close):
    base, *tensors = draw(2, 3)
    for share in (0.1, 0.5, 1.0):
        close(aswudi(tensors, base, rank="cumvar", share=share), oracle(tensors, base, "cumvar", share=share))


def test_one_member_is_the_member_where_all_directions_count(draw, close):
    base, one = draw(3, 2, (9, 7))
    close(aswudi([one], base, init="zero", rank="cumvar", share=1), one.double().numpy())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"init": "one"}, "init should be sum, mean or zero, not 'one'"),
        (
            {"rank": "none"},
            "rank should be one of stable_rank, entropy, participation, participation_sqrt, cumvar, gavish_donoho, not 'none'",
        ),
        ({"share": 0.0}, "share should be greater than 0 and at most 1, not 0.0"),
    ],
)
def test_wrong_arguments(draw, arguments, told):
    with pytest.raises(ValueError, match=f"^{told}$"):
        aswudi(draw(4, 2), draw(4, 1)[0], **arguments)
