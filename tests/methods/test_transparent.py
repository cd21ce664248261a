"""What is not finite in an input of a transparent method is not finite in its result, whatever the parameters."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fuse import methods
from fuse.methods.arithmetic import Unmergeable
from fuse.methods.random import key
from fuse.methods.table import METHODS

SHAPE = (6, 7)
GIVEN = {
    "weights": st.sampled_from([0.0, 0.5, -1.0, 2.0]),
    "density": st.sampled_from([0.01, 0.3, 0.9]),
    "gamma": st.sampled_from([0.0, 0.05]),
    "t": st.sampled_from([0.0, 0.3, 1.0]),
    "epsilon": st.sampled_from([0.0, 0.005]),
}
LOOKED_AT = [name for name, one in METHODS.items() if one.kind == "elementwise" or one.transparent]


def test_which_are() -> None:
    opaque = {name for name, one in METHODS.items() if one.kind == "measured" and not one.transparent}
    assert opaque == {"sce", "arcee_fusion"}


@pytest.mark.parametrize("name", LOOKED_AT)
@given(st.data(), st.integers(0, 100), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_it_stays_visible(name: str, data: st.DataObject, seed: int, bad: float) -> None:
    method = METHODS[name]
    count = max(method.inputs[0], min(method.inputs[1] or 3, 3))
    made = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(SHAPE, generator=made) for _ in range(count)]
    base = torch.randn(SHAPE, generator=made) if method.base == "required" else None
    values = {
        parameter: data.draw(GIVEN[parameter]) if not one.per_member else [data.draw(GIVEN[parameter])] * count
        for parameter, one in method.params.items() if parameter in GIVEN
    }  # fmt: skip
    if "normalize" in method.params:
        values["normalize"] = data.draw(st.booleans())
    assume(method.problem(values, count) is None)
    place = data.draw(st.sampled_from([*tensors, *([] if base is None else [base])]))
    place.view(-1)[data.draw(st.integers(0, place.numel() - 1))] = bad
    arguments = method.arguments(values, count)
    if method.random:
        arguments["keys"] = [key(seed, "w", str(member)) for member in range(count)]
    try:
        merged = methods.load(name)(tensors, *([] if base is None else [base]), **arguments)
    except Unmergeable:
        assume(False)
    assert not merged.isfinite().all()
