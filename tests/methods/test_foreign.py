"""mergekit's kernels under their own names: the table agrees with its registry, and the results with its library."""

import subprocess
import sys
import threading
from pathlib import Path

import mergekit.merge_methods as theirs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import BasePolicy, ParameterScope

from fuse.errors import RecipeError
from fuse.methods import METHODS, load
from fuse.methods.method import REQUIRED
from fuse.methods.table_foreign import FOREIGN

BASES = {BasePolicy.REQUIRED: "required", BasePolicy.OPTIONAL: "optional", BasePolicy.IGNORED: "none"}
RANDOM = {"dare_linear", "dare_ties", "della", "della_linear", "arcee_fusion"}
VALUES = {"weight": [0.3, 0.9], "density": [0.5, 0.4], "t": 0.3, "scale": [2.0, 2.0], "epsilon": 1e-3}


def test_the_table_has_the_names_of_the_registry():
    assert {name.removeprefix("mergekit/") for name in FOREIGN} == {
        one.spec.name for one in theirs.registered_methods()
    }
    assert FOREIGN.items() <= METHODS.items()


@pytest.mark.parametrize("name", FOREIGN)
def test_a_row_describes_their_kernel(name):
    row, spec = FOREIGN[name], theirs.get(name.removeprefix("mergekit/")).spec
    assert row.name == name and row.kind == "whole" and row.random == (spec.name in RANDOM)
    contract = spec.contract
    assert row.base == BASES[contract.base]
    bases = int(row.base == "required")
    least, most = contract.min_inputs - bases, contract.max_inputs and contract.max_inputs - bases
    if contract.min_non_base is not None:
        least, most = contract.min_non_base, contract.max_non_base
    assert row.inputs == (max(least, 1), most)
    ours = {field: param for field, param in row.params.items() if field != "seed"}
    assert ours.keys() == {param.name for param in spec.parameters} and ("seed" in row.params) == row.random
    for param in spec.parameters:
        mine = ours[param.name]
        assert mine.per_member == (param.scope != ParameterScope.SHARED)
        assert (mine.default is REQUIRED) == param.required
        if param.name == "scale":
            assert param.default is None and mine.default == 1  # theirs then multiplies by nothing
        else:
            assert mine.kind is param.value_type
            assert param.required or mine.default == param.default


def setting(name, draw, dtype=torch.float32):
    """Tensors, a base or none, and arguments that suit the method."""
    row = FOREIGN[name]
    count = min(2, row.inputs[1] or 2)
    base, *tensors = draw(1, 1 + count, (6, 8), dtype)
    values = {field: VALUES[field] for field in VALUES if field in row.params}
    values = {key: value[:count] if isinstance(value, list) else value for key, value in values.items()}
    if "della" in name:
        values["epsilon"] = [0.1, 0.2]
    return tensors, None if row.base == "none" else base, values, row.arguments(values, count)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_result_is_theirs(draw, name, dtype):
    tensors, base, values, arguments = setting(name, draw, dtype)
    keys = {"keys": [1, 2]} if FOREIGN[name].random else {}
    ours = load(name)(tensors, *([] if base is None else [base]), **arguments, **keys)
    if keys:
        assert ours.isfinite().all() and not torch.equal(ours, base.float())
        return
    ids = [*([] if base is None else ["base"]), *range(len(tensors))]
    numbers = {key: dict(enumerate(value)) if isinstance(value, list) else value for key, value in values.items()}
    wanted = theirs.merge_tensors(
        [*([] if base is None else [base]), *tensors], name.removeprefix("mergekit/"), parameters=numbers, ids=ids,
        base_index=None if base is None else 0, dtype=torch.float32,
    )  # fmt: skip
    assert ours.dtype == torch.float32 and torch.equal(ours, wanted)


@pytest.mark.parametrize("name", FOREIGN)
def test_every_parameter_reaches_it(draw, name):
    """Each one moved, where the kernel can show it; what mergekit checks by itself must not be refused."""
    tensors, base, values, _ = setting(name, draw)
    row = FOREIGN[name]
    moved = {
        "weight": [0.9, 0.2], "density": [0.3, 0.3], "t": 0.6, "scale": [3.0], "lambda": 0.5, "normalize": None,
        "select_topk": 0.25, "alpha": 0.01, "r": 0.9, "normalize_weights": None, "filter_wise": None,
    }  # fmt: skip
    keys = {"keys": [1, 2]} if row.random else {}

    def merged(numbers):
        return load(name)(tensors, *([] if base is None else [base]), **row.arguments(numbers, len(tensors)), **keys)

    before = merged(values)
    for field, other in moved.items():
        if field in row.params and (field, name) != ("density", "mergekit/task_arithmetic"):
            default = row.params[field].default
            result = merged({**values, field: not default if other is None else other})
            assert not torch.equal(result, before), field


@pytest.mark.parametrize("name", sorted(name for name in FOREIGN if FOREIGN[name].random))
def test_draws_depend_on_the_keys_alone(draw, monkeypatch, name):
    """Not on what was drawn before, nor on threads; and what others draw does not change."""
    if name == "mergekit/arcee_fusion":  # which draws where a tensor is large
        monkeypatch.setattr("mergekit.merge_methods.arcee_fusion._QUANTILE_SAMPLE_SIZE", 5)
    tensors, base, _, arguments = setting(name, draw)

    def merged(*keys):
        return load(name)(tensors, base, **arguments, keys=keys)

    torch.manual_seed(1)
    first, state = merged(1, 2), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(merged(1, 2), first)
    assert any(not torch.equal(merged(other, 2), first) for other in range(2, 9))
    found: list[torch.Tensor] = []
    workers = [threading.Thread(target=lambda: found.extend(merged(1, 2) for _ in range(20))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 60 and all(torch.equal(one, first) for one in found)


@pytest.mark.parametrize("name", FOREIGN)
def test_inputs(draw, name):
    """Left as they are, of any dtype, empty, or with a number that is not finite."""
    keys = {"keys": [1, 2]} if FOREIGN[name].random else {}
    tensors, base, _, arguments = setting(name, draw, torch.float64)
    inputs = [tensors, *([] if base is None else [base])]
    before = [tensor.clone() for tensor in tensors]
    result = load(name)(*inputs, **arguments, **keys)
    assert result.dtype == torch.float64
    result.zero_()
    assert all(map(torch.equal, tensors, before))
    empty = [torch.zeros(0, 3) for _ in tensors]
    assert load(name)(empty, *([] if base is None else [empty[0]]), **arguments, **keys).shape == (0, 3)
    tensors[0][2, 3] = torch.nan
    assert load(name)(*inputs, **arguments, **keys)[2, 3].isnan()
    with pytest.raises(ValueError, match="shapes differ"):
        load(name)([torch.zeros(2)], torch.zeros(3), **arguments, **keys)


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_plan_refuses_the_ranges_that_mergekit_would(draw, twentieths, half):
    numbers = {"weight": [1], "density": [twentieths / 20], "epsilon": [half / 20]}
    told = FOREIGN["mergekit/della"].problem(numbers, 1)
    try:
        load("mergekit/della")(draw(4, 1), draw(5, 1)[0], **numbers, keys=[1])
        refused = False
    except RecipeError:
        refused = True
    assert refused == (told is not None)


def test_weights_that_cancel(draw):
    told = "mergekit/linear: the weights sum to zero and cannot be normalized"
    assert FOREIGN["mergekit/linear"].problem({"weight": [1, -1]}, 2) == told
    assert FOREIGN["mergekit/linear"].problem({"weight": [1, -1], "normalize": False}, 2) is None
    assert not load("mergekit/linear")(draw(6, 2), weight=[1, -1], normalize=True).isfinite().all()
    for normalize in (True, False):
        numbers = {"weight": [1, -1], "normalize_weights": normalize}
        merged = load("mergekit/multislerp")(draw(6, 2), **numbers, eps=1e-8)
        assert merged.isfinite().all() == (FOREIGN["mergekit/multislerp"].problem(numbers, 2) is None)


def test_what_mergekit_refuses(draw):
    base, *tensors = draw(3, 3)
    numbers = {"weight": [1, 1], "density": [0.1, 0.5], "epsilon": [0.15, 0.15], "keys": [1, 2]}
    with pytest.raises(RecipeError) as caught:
        load("mergekit/della")(tensors, base, **numbers)
    told = "Epsilon must be chosen such that density +/- epsilon is in (0, 1)"
    assert str(caught.value) == f"mergekit/della refuses this: {told}"


def test_the_table_needs_no_mergekit():
    code = "import sys, fuse.recipe_merge; sys.exit('mergekit' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
