"""The methods that treat a tensor as a matrix: its singular vectors, or what it does to inputs."""

from collections.abc import Mapping
from typing import Final

from fuse.methods.method import Method, Param
from fuse.methods.parameters import LAMBDA

STEPS = Param("steps down the loss", 300, int, low=0, high=100_000)
INIT = Param(
    "where the way down begins: the task vectors' sum or mean, or zero", "sum", str, choices=("sum", "mean", "zero")
)
RANKS = ("stable_rank", "entropy", "participation", "participation_sqrt", "cumvar", "gavish_donoho")
# Of the blocks that are computed in float64.
BLOCKS = 1 << 24


def _singular(rows: int, width: int, inputs: int) -> int:
    """Task matrices, what becomes of them, and an eigendecomposition in float64 over the shorter side."""
    return (inputs + 9) * rows * width + 10 * min(rows, width) ** 2 + BLOCKS


def _interference(rows: int, width: int, inputs: int) -> int:
    """The same over the width."""
    return (inputs + 8) * rows * width + 9 * width**2 + BLOCKS


def _low_rank(rows: int, width: int, inputs: int) -> int:
    """Both."""
    return (inputs + 18) * rows * width + 9 * width**2 + BLOCKS


MATRICES: Final[Mapping[str, Method]] = {
    "tsv": Method(
        name="tsv",
        doc="the members' leading singular vectors, made orthogonal to each other",
        base="required",
        inputs=(1, None),
        params={"lambda": LAMBDA},
        kind="whole",
        numbers=_singular,
    ),
    "iso_c": Method(
        name="iso_c",
        doc="the sum of the task vectors with all singular values made equal",
        base="required",
        inputs=(1, None),
        params={"lambda": LAMBDA},
        kind="whole",
        numbers=_singular,
    ),
    "wudi": Method(
        name="wudi",
        doc="the sum of the task vectors, moved towards less interference",
        base="required",
        inputs=(1, None),
        params={"lambda": LAMBDA, "steps": STEPS},
        kind="whole",
        numbers=_interference,
    ),
    "optmerge": Method(
        name="optmerge",
        doc="task vectors of low rank, merged with little interference",
        base="required",
        inputs=(1, None),
        params={
            "variant": Param("what the members are", "lora", str, choices=("lora", "full", "modality")),
            "lambda": LAMBDA,
            "steps": STEPS,
        },
        kind="whole",
        numbers=_low_rank,
    ),
    "swudi": Method(
        name="swudi",
        doc="wudi's loss descended at once, along its strongest directions",
        base="required",
        inputs=(1, None),
        params={
            "init": INIT,
            "time": Param("how far down: 0 is the start, a large number the minimum", 300.0, low=0),
            "ratio": Param("the share of the directions that is descended", 0.65, low=0, high=1, low_open=True),
            "lambda": LAMBDA,
        },
        kind="whole",
        numbers=_interference,
    ),
    "aswudi": Method(
        name="aswudi",
        doc="the minimum of wudi's loss, along as many directions as a rule says",
        base="required",
        inputs=(1, None),
        params={
            "init": INIT,
            "rank": Param("the rule of how many directions", "participation_sqrt", str, choices=RANKS),
            "share": Param("cumvar: the share of the spectrum", 0.9, low=0, high=1, low_open=True),
            "lambda": LAMBDA,
        },
        kind="whole",
        numbers=_interference,
    ),
}
