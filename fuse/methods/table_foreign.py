"""mergekit's own kernels as methods, `mergekit/NAME`: every name of its registry (0.1.5), with its parameters' names.

Needs no mergekit, so that a plan can be made without importing it; a test compares the rows with the registry.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from fuse.methods.method import Method, Param, sums_to_zero

PREFIX: Final = "mergekit/"

WEIGHT = Param("the share of each member", per_member=True)
SEED = Param("picks what is drawn at random; the same seed draws the same", 0, int, low=0)
SPARSE = {
    "weight": WEIGHT,
    "density": Param("the share of a task vector that is kept", 1.0, per_member=True, low=0, high=1),
    "lambda": Param("multiplies the merged task vector", 1.0),
    "int8_mask": Param("votes on the sign in 8 bits", False, bool),
}
GAMMA = Param("the share of the largest changes that is dropped", 0.01, per_member=True, low=0, high=1)
EPSILON = Param("half the width of the range of keep probabilities", 0.15, per_member=True, low=0, high=1)
EVEN = Param("changes below this do not count", 1e-5, low=0)


def _flag(doc: str, default: bool) -> Param:
    return Param(doc, default, bool)


def _no_mean(given: Mapping[str, Any]) -> str | None:
    """mergekit divides by the sum all the same."""
    normalize = given.get("normalize", given.get("normalize_weights"))
    return "the weights sum to zero and cannot be normalized" if normalize and sums_to_zero(given["weight"]) else None


def _no_range(given: Mapping[str, Any]) -> str | None:
    """What mergekit refuses when it gets there."""
    for density, epsilon in zip(given["density"], given["epsilon"], strict=True):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            return (
                f"density - epsilon and density + epsilon should lie between 0 and 1, not {density:g} and {epsilon:g}"
            )
    return None


def _numbers(rows: int, width: int, inputs: int) -> int:
    """The most that a kernel was seen to take."""
    return (6 * inputs + 6) * rows * width


def _row(
    name: str,
    base: Literal["required", "optional", "none"],
    inputs: tuple[int, int | None],
    params: Mapping[str, Param],
    *,
    random: bool = False,
    check: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> Method:
    if random:
        params = {**params, "seed": SEED}
    doc = f"mergekit's kernel of {name}"
    return Method(PREFIX + name, doc, base, inputs, params, kind="whole", random=random, check=check, numbers=_numbers)


def _sparse(name: str, *, normalize: bool, rescale: bool, random: bool = False, **more: Param) -> Method:
    flags = {
        "normalize": _flag("divide by the sum of the weights", normalize),
        "rescale": _flag("restore the L1 norm of what was thinned", rescale),
    }
    check = _no_range if "epsilon" in more else None
    return _row(name, "required", (1, None), {**SPARSE, **flags, **more}, random=random, check=check)


_ROWS = (
    _row(
        "linear",
        "none",
        (1, None),
        {"weight": WEIGHT, "normalize": _flag("divide by the sum of the weights", True)},
        check=_no_mean,
    ),
    _row("passthrough", "none", (1, 1), {"scale": Param("factor of the tensor", 1.0, per_member=True)}),
    _row("slerp", "required", (1, 1), {"t": Param("where on the arc: 0 is the base, 1 the member")}),
    _row(
        "nuslerp",
        "optional",
        (2, 2),
        {
            "weight": WEIGHT,
            "nuslerp_row_wise": _flag("one arc a row or column", False),
            "nuslerp_flatten": _flag("one arc a tensor", True),
        },
    ),
    _row(
        "multislerp",
        "optional",
        (1, None),
        {
            "weight": WEIGHT,
            "normalize_weights": _flag("divide by the sum of the weights", True),
            "eps": Param("what counts as zero", 1e-8, low=0),
        },
        check=_no_mean,
    ),
    _row(
        "karcher",
        "none",
        (1, None),
        {"max_iter": Param("most iterations", 10, int, low=1), "tol": Param("where they stop", 1e-5, low=0)},
    ),
    _row("model_stock", "required", (2, None), {"filter_wise": _flag("one ratio a row", False)}),
    _row("nearswap", "required", (1, 1), {"t": Param("the change below which the member is taken whole")}),
    _row("arcee_fusion", "required", (1, 1), {}, random=True),
    _row(
        "sce",
        "required",
        (1, None),
        {
            "int8_mask": _flag("votes on the sign in 8 bits", False),
            "select_topk": Param("the share of elements that differ most", 1.0, low=0, high=1),
        },
    ),
    _row("ram", "required", (1, None), {"epsilon": EVEN}),
    _row(
        "ramplus_tl",
        "required",
        (1, None),
        {
            "r": Param("how much unique changes are raised", 0.1),
            "alpha": Param("the most that they are raised by", 0.2, low=0),
            "epsilon": EVEN,
        },
    ),
    _sparse("task_arithmetic", normalize=False, rescale=False),
    _sparse("ties", normalize=True, rescale=False),
    _sparse("dare_linear", normalize=False, rescale=True, random=True),
    _sparse("dare_ties", normalize=False, rescale=True, random=True),
    _sparse("della", normalize=True, rescale=True, random=True, epsilon=EPSILON),
    _sparse("della_linear", normalize=False, rescale=True, random=True, epsilon=EPSILON),
    _sparse("breadcrumbs", normalize=False, rescale=False, gamma=GAMMA),
    _sparse("breadcrumbs_ties", normalize=False, rescale=False, gamma=GAMMA),
)
FOREIGN: Final[Mapping[str, Method]] = {row.name: row for row in _ROWS}
