"""Which method of fuse computes what a method of mergekit does: fuse's own, or else mergekit's kernel."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fuse.methods.method import Method
from fuse.methods.table import METHODS
from fuse.methods.table_foreign import FOREIGN, PREFIX

# mergekit's method -> what its parameters are called by fuse's method of that name
SPARSE = {"weight": "weights", "density": "density", "lambda": "lambda", "normalize": "normalize"}
OWN: Final[Mapping[str, Mapping[str, str]]] = {
    "linear": {"weight": "weights", "normalize": "normalize"},
    "passthrough": {"scale": "scale"},
    "slerp": {"t": "t"},
    "nuslerp": {"weight": "weights", "nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"},
    "multislerp": {"weight": "weights", "normalize_weights": "normalize", "eps": "eps"},
    "karcher": {"max_iter": "max_iter", "tol": "tol"},
    "model_stock": {"filter_wise": "filter_wise"},
    "arcee_fusion": {},
    "sce": {"select_topk": "select_topk"},
    "task_arithmetic": {"weight": "weights", "lambda": "lambda", "normalize": "normalize"},
    "ties": SPARSE,
    "breadcrumbs": {**SPARSE, "gamma": "gamma"},
    "breadcrumbs_ties": {**SPARSE, "gamma": "gamma"},
    "dare_linear": {**SPARSE, "rescale": "rescale"},
    "dare_ties": {**SPARSE, "rescale": "rescale"},
}
SCALARS: Final = frozenset({"normalize", "flatten", "row_wise", "filter_wise", "max_iter", "rescale"})

Values = Mapping[str, Any]  # of one tensor: a value, or values by member


def _rescales(values: Values) -> bool:
    """Whether mergekit restores the L1 norm of what it thinned, where fuse divides by the density or does nothing."""
    return bool(values.get("rescale")) and any(density < 1 for density in values["density"].values())


def _as_one(values: Sequence[Values], field: str) -> bool:
    return all(one[field] == values[0][field] for one in values)


def foreign(method: str) -> Method:
    """The row of mergekit's method."""
    return FOREIGN[PREFIX + method]


def chosen(method: str, tensors: Sequence[tuple[Values, int]]) -> str:
    """The name of fuse's method for the values of all tensors, each with how many members fuse's own would merge.

    mergekit's kernel is taken where fuse has no method of that name, means another thing by a parameter, or takes no
    such values.
    """
    everywhere = [values for values, _ in tensors]
    if method not in OWN or (method != "task_arithmetic" and any(map(_rescales, everywhere))):  # which thins nothing
        return PREFIX + method
    names = OWN[method]
    if any(new in SCALARS and not _as_one(everywhere, old) for old, new in names.items()):
        return PREFIX + method
    if method in {"linear", "passthrough"}:  # what they refuse, mergekit divides by or has no meaning for
        return method
    seen: list[tuple[Values, int]] = []
    for values, inputs in tensors:
        if (values, inputs) in seen[-8:]:  # neighbours are mostly alike
            continue
        seen.append((values, inputs))
        told = {new: _list(values[old]) for old, new in names.items()}
        if METHODS[method].problem(told, inputs):
            return PREFIX + method
    return method


def _list(value: Any) -> Any:
    return list(value.values()) if isinstance(value, Mapping) else value
