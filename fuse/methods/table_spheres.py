"""The methods that average directions: on a sphere, or by the angles between task vectors."""

from collections.abc import Mapping
from typing import Final

from fuse.methods.checks import arc_problem
from fuse.methods.method import Method, Param
from fuse.methods.parameters import BY_SUM, WEIGHTS

SPHERES: Final[Mapping[str, Method]] = {
    "nuslerp": Method(
        name="nuslerp",
        doc="the point on the arc between two members or task vectors that the weights say, whole or by row",
        base="optional",
        inputs=(2, 2),
        params={
            "weights": WEIGHTS,
            "flatten": Param("one angle for a tensor; otherwise one for each row or column", True, bool),
            "row_wise": Param("without flatten: one angle for each column, not row", False, bool),
        },
        kind="measured",
        transparent=True,
        by_row=True,
        check=lambda given: arc_problem(given["weights"]),
    ),
    "multislerp": Method(
        name="multislerp",
        doc="weighted mean of directions by way of the plane that touches the sphere there, and of lengths",
        base="optional",
        inputs=(1, None),
        params={
            "weights": WEIGHTS,
            "normalize": Param(BY_SUM, True, bool),
            "eps": Param("a length up to which a vector has no direction", 1e-8, low=0),
        },
        kind="measured",
        transparent=True,
        nonzero_sum=True,
    ),
    "karcher": Method(
        name="karcher",
        doc="the direction with the least squared angles to the members', and the mean of lengths",
        base="none",
        inputs=(1, None),
        params={
            "max_iter": Param("the most steps", 10, int, low=0, high=100_000),
            "tol": Param("the angle below which a step is the last", 1e-5, low=0),
        },
        kind="measured",
        transparent=True,
    ),
    "model_stock": Method(
        name="model_stock",
        doc="between the base and the mean of the members, as far as the angles of the task vectors say",
        base="required",
        inputs=(2, None),
        params={"filter_wise": Param("one ratio for each row, not one for a tensor", False, bool)},
        kind="measured",
        transparent=True,
        by_row=True,
    ),
}
