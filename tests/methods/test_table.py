import dataclasses
import inspect
import subprocess
import sys
from math import prod
from pathlib import Path

import mergekit.merge_methods
import pytest
import torch

from fuse.errors import RecipeError
from fuse.memory import row_memory
from fuse.methods import METHODS, REQUIRED, Param, load
from fuse.methods.table import sums_to_zero
from fuse.plan import Row, Source
from fuse.safetensors_header import TensorEntry

SOME = {"weights": [1, 2], "density": 0.5}
GOOD = {
    **dict.fromkeys(("della", "della_linear", "breadcrumbs", "breadcrumbs_ties"), SOME),
    "linear": {"weights": 1},
    "slerp": {"t": 0.5},
    "passthrough": {"scale": 2},
}
OURS = [name for name in METHODS if not name.startswith("mergekit/")]
THEIR_NAMES = {
    ("nuslerp", "flatten"): "nuslerp_flatten",
    ("nuslerp", "row_wise"): "nuslerp_row_wise",
    ("multislerp", "normalize"): "normalize_weights",
}
NOT_MERGEKITS = ("tsv", "iso_c", "wudi", "optmerge", "swudi", "aswudi")


def test_the_table_needs_no_torch():
    code = "import sys, fuse.methods, fuse.methods.table; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", OURS)
def test_a_row_describes_its_function(name):
    row, signature = METHODS[name], inspect.signature(load(name))
    assert row.name == name
    expected = {"lambda_" if param == "lambda" else param: row.params[param] for param in row.params}
    expected.pop("seed", None)
    assert ("base" in signature.parameters) == (row.base != "none")
    assert {"keys", "offset"} <= set(signature.parameters) if row.random else "keys" not in signature.parameters
    assert ("seed" in row.params) == row.random
    keywords = set(signature.parameters) - {"tensors", "base", "keys", "offset"}
    assert keywords == set(expected)
    for argument, param in expected.items():
        default = signature.parameters[argument].default
        if not param.per_member:
            assert default == (inspect.Parameter.empty if param.default is REQUIRED else param.default)


@pytest.mark.parametrize("name", [name for name in OURS if name not in NOT_MERGEKITS])
def test_defaults_are_mergekits(name):
    theirs = {param.name: param for param in mergekit.merge_methods.get(name).spec.parameters}
    for param, ours in METHODS[name].params.items():
        if param != "seed":
            if param == "density" and ours.default is REQUIRED:
                assert theirs[param].default == 1  # which does not go together with their epsilon and gamma
                continue
            other = theirs[THEIR_NAMES.get((name, param), "weight" if param == "weights" else param)]
            assert (ours.default is REQUIRED) == other.required
            none = {("passthrough", "scale"): 1.0}.get((name, param), other.default)  # mergekit's None scales by 1
            assert ours.default is REQUIRED or ours.default == none


@pytest.mark.parametrize("name", OURS)
def test_arguments_are_enough_to_call(name, draw):
    row = METHODS[name]
    count = min(row.inputs[1] or 2, 2)
    base, *tensors = draw(1, 1 + count)
    arguments = row.arguments(GOOD.get(name, {"weights": [1, 2]} if "weights" in row.params else {}), count)
    keys = {"keys": [1, 2]} if row.random else {}
    result = load(name)(tensors, *[base] * (row.base == "required"), **arguments, **keys)
    assert result.shape == base.shape and result.dtype == torch.float32


def test_arguments_fill_in_and_rename():
    assert METHODS["dare_ties"].arguments({"weights": 0.5, "lambda": 2, "seed": 7}, 2) == {
        "weights": [0.5, 0.5],
        "density": [1.0, 1.0],
        "lambda_": 2,
        "normalize": False,
        "rescale": True,
    }


@pytest.mark.parametrize(
    ("name", "values", "inputs", "text"),
    [
        ("slerp", {"t": 0.5}, 3, "slerp takes exactly 2 members, not 3"),
        ("linear", {"weights": []}, 0, "linear takes 1 or more members, not 0"),
        (
            "linear",
            {"weights": 1, "wieght": 1},
            1,
            "linear has no parameter 'wieght'; it has weights, normalize",
        ),
        ("linear", {}, 1, "linear: weights is missing"),
        (
            "linear",
            {"weights": [1, -1]},
            2,
            "linear: the weights sum to zero, so normalize cannot divide by their sum",
        ),
        (
            "linear",
            {"weights": 0},
            2,
            "linear: the weights sum to zero, so normalize cannot divide by their sum",
        ),
        ("linear", {"weights": [1, 1]}, 3, "linear: weights has 2 values for 3 members"),
        ("linear", {"weights": [1, "x"]}, 2, "linear: weights should be a number, not 'x'"),
        ("linear", {"weights": True}, 2, "linear: weights should be a number, not True"),
        ("linear", {"weights": float("nan")}, 2, "linear: weights should be finite, not nan"),
        ("linear", {"weights": 1, "normalize": 1}, 2, "linear: normalize should be true or false, not 1"),
        ("slerp", {"t": [0.5, 0.5]}, 2, "slerp: t should be one value, not a list"),
        ("slerp", {"t": 1.5}, 2, "slerp: t should be at most 1, not 1.5"),
        ("slerp", {"t": -1}, 2, "slerp: t should be at least 0, not -1"),
        ("ties", {"weights": 1, "density": [1, 0]}, 2, "ties: density should be greater than 0, not 0"),
        ("dare_ties", {"weights": 1, "seed": 1.5}, 2, "dare_ties: seed should be a whole number, not 1.5"),
        ("dare_ties", {"weights": 1, "seed": -1}, 2, "dare_ties: seed should be at least 0, not -1"),
        ("optmerge", {"variant": "lora"}, 2, None),
        ("optmerge", {"variant": 1}, 2, "optmerge: variant should be lora, full or modality, not 1"),
        ("wudi", {"steps": -1}, 2, "wudi: steps should be at least 0, not -1"),
        ("linear", {"weights": [1, -1], "normalize": False}, 2, None),
        ("task_arithmetic", {"weights": [1, -1], "normalize": False}, 2, None),
        (
            "task_arithmetic",
            {"weights": [1, -1], "normalize": True},
            2,
            "task_arithmetic: the weights sum to zero, so normalize cannot divide by their sum",
        ),
        ("task_arithmetic", {"weights": 0, "normalize": True}, 2, None),
        ("dare_linear", {"weights": [0.5, 1], "density": 0.1, "seed": 12, "lambda": -1}, 2, None),
    ],
)
def test_problems(name, values, inputs, text):
    assert METHODS[name].problem(values, inputs) == text


def test_an_open_upper_bound():
    assert Param("", high=1, high_open=True).problem(1) == "should be less than 1, not 1"


def test_sums_to_zero_is_relative():
    assert sums_to_zero([0.1, 0.2, -0.3]) and sums_to_zero([0, 0]) and sums_to_zero([1e30, -1e30])
    assert not sums_to_zero([1e-30]) and not sums_to_zero([1, -0.999])


def test_rows_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["linear"].doc = "mine"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["tie", "table", "../linear", "os", ""])
def test_only_names_of_the_table_are_loaded(name):
    with pytest.raises(RecipeError, match="unknown merge method") as caught:
        load(name)
    assert caught.value.hint == "did you mean ties?" if name == "tie" else caught.value.hint


def test_memory_of_a_stack_is_that_of_its_tensors_and_of_one_matrix():
    def memory(shape):
        entry = TensorEntry(Path("file"), "x", "F32", shape, 0, 4 * prod(shape))
        sources = tuple(Source(member, entry) for member in "ab")
        return row_memory(Row("x", "merge", "x", "language", shape, "F32", sources, method="wudi", parameters={}))

    one, stack, flat = memory((64, 96)), memory((50, 64, 96)), memory((50, 64 * 96))
    assert one + 4 * 49 * 64 * 96 * 4 < stack < one + 4 * 50 * 64 * 96 * 8 < flat


def test_memory_of_methods_that_see_matrices():
    """In float32 numbers: at least the inputs, more for a wider matrix, and whole tensors of any shape."""
    for name in NOT_MERGEKITS:
        numbers = METHODS[name].numbers
        assert numbers is not None
        assert numbers(100, 50, 3) > 3 * 100 * 50
        assert numbers(1000, 4000, 3) > numbers(1000, 2000, 3)
