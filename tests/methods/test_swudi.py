import math

import numpy as np
import pytest
import torch

from fuse.methods.swudi import swudi


def oracle(tensors, base, init="sum", time=300.0, ratio=0.65):
    """The formulas of the official code, in numpy: filtered start and filtered solution apart."""
    start = base.double().numpy()
    taus = [tensor.double().numpy() - start for tensor in tensors]
    c = sum(tau.T @ tau / (tau**2).sum() for tau in taus)
    d = sum(tau @ tau.T @ tau / (tau**2).sum() for tau in taus)
    values, vectors = np.linalg.eigh(c)
    values = np.maximum(values, 1e-8)
    width = len(values)
    covered = (1 - np.exp(-values * time)) * (np.arange(width) >= width - math.ceil(width * ratio))
    theta = {"sum": sum(taus), "mean": sum(taus) / len(taus), "zero": 0 * taus[0]}[init]
    return start + theta - theta @ vectors * covered @ vectors.T + d @ vectors * (covered / values) @ vectors.T


@pytest.mark.parametrize("init", ["sum", "mean", "zero"])
@pytest.mark.parametrize("shape", [(12, 15), (15, 12), (3, 20)])
def test_oracle(draw, close, init, shape):
    base, *tensors = draw(1, 4, shape)
    for time, ratio in [(300.0, 0.65), (3.0, 0.2), (0.0, 1.0), (1e9, 1.0)]:
        merged = swudi(tensors, base, init=init, time=time, ratio=ratio)
        close(merged, oracle(tensors, base, init, time, ratio))


def test_no_time_is_the_start(draw, close):
    base, a, b = draw(2, 3)
    close(swudi([a, b], base, time=0), (a.double() + b.double() - base.double()).numpy())
    close(swudi([a, b], base, init="mean", time=0), ((a.double() + b.double()) / 2).numpy())
    assert torch.equal(swudi([a, b], base, init="zero", time=0), base)


def test_one_member_is_the_member_in_the_end(draw, close):
    base, one = draw(3, 2)
    close(swudi([one], base, init="zero", time=1e12, ratio=1), one.double().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"init": "one"}, "init should be sum, mean or zero, not 'one'"),
        ({"time": -1.0}, "time should be at least 0, not -1.0"),
        ({"time": math.nan}, "time should be at least 0, not nan"),
        ({"ratio": 0.0}, "ratio should be greater than 0 and at most 1, not 0.0"),
        ({"ratio": 1.5}, "ratio should be greater than 0 and at most 1, not 1.5"),
    ],
)
def test_wrong_arguments(draw, arguments, told):
    with pytest.raises(ValueError, match=f"^{told}$"):
        swudi(draw(4, 2), draw(4, 1)[0], **arguments)
