"""The methods that treat a tensor as a vector of numbers: means, arcs, and arithmetic of task vectors."""

from collections.abc import Mapping
from typing import Final

from fuse.methods.method import Method, Param
from fuse.methods.parameters import BY_AGREED, BY_SUM, DARE, DENSITY, LAMBDA, WEIGHTS

VECTORS: Final[Mapping[str, Method]] = {
    "linear": Method(
        name="linear",
        doc="weighted mean of the members",
        base="none",
        inputs=(1, None),
        params={"weights": WEIGHTS, "normalize": Param(BY_SUM, True, bool)},
        kind="elementwise",
        nonzero_sum=True,
    ),
    "passthrough": Method(
        name="passthrough",
        doc="one member as it is, which `layers` stacks",
        base="none",
        inputs=(1, 1),
        params={"scale": Param("multiplies the tensor; 0 silences what it adds", 1.0)},
        kind="elementwise",
    ),
    "slerp": Method(
        name="slerp",
        doc="the point at t on the arc from the first member to the second",
        base="none",
        inputs=(2, 2),
        params={"t": Param("where on the arc: 0 is the first member, 1 the second", low=0, high=1)},
        kind="measured",
        transparent=True,
    ),
    "task_arithmetic": Method(
        name="task_arithmetic",
        doc="base plus the weighted sum of the task vectors",
        base="required",
        inputs=(1, None),
        params={"weights": WEIGHTS, "lambda": LAMBDA, "normalize": Param(BY_SUM, False, bool)},
        kind="elementwise",
        nonzero_sum=True,
    ),
    "ties": Method(
        name="ties",
        doc="trim small changes, elect a sign, merge the task vectors that agree with it",
        base="required",
        inputs=(1, None),
        params={
            "weights": WEIGHTS,
            "density": DENSITY,
            "lambda": LAMBDA,
            "normalize": Param(BY_AGREED, True, bool),
        },
        kind="measured",
        transparent=True,
        nonzero_sum=True,
    ),
    "dare_linear": Method(
        name="dare_linear",
        doc="task arithmetic over task vectors with elements dropped at random",
        base="required",
        inputs=(1, None),
        params={**DARE, "normalize": Param(BY_SUM, False, bool)},
        kind="elementwise",
        random=True,
        nonzero_sum=True,
    ),
    "dare_ties": Method(
        name="dare_ties",
        doc="sign election over task vectors with elements dropped at random",
        base="required",
        inputs=(1, None),
        params={**DARE, "normalize": Param(BY_AGREED, False, bool)},
        kind="elementwise",
        random=True,
        nonzero_sum=True,
    ),
}
