"""The methods that keep some elements of a task vector and drop others, beside those of `table_vectors`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fuse.methods.checks import crumbs_problem, keep_range_problem
from fuse.methods.method import REQUIRED, Method, Param
from fuse.methods.parameters import BY_AGREED, BY_SUM, DARE, DENSITY, LAMBDA, WEIGHTS

# No default of its own: the whole, mergekit's, does not go together with epsilon or gamma.
SOME = replace(DENSITY, default=REQUIRED)
DELLA = {
    "weights": WEIGHTS,
    "density": SOME,
    "epsilon": Param("half the width of the range of keep probabilities", 0.15, per_member=True, low=0, high=0.5),
    "lambda": LAMBDA,
    "rescale": Param("divide what is kept by its probability, so that the mean stays", True, bool),
    "seed": DARE["seed"],
}
CRUMBS = {
    "weights": WEIGHTS,
    "density": SOME,
    "gamma": Param("the share of the largest magnitudes, which is dropped", 0.01, per_member=True, low=0, high=1),
    "lambda": LAMBDA,
}

SPARSE: Final[Mapping[str, Method]] = {
    "della": Method(
        name="della",
        doc="sign election over task vectors thinned at random, large magnitudes of a row less than small ones",
        base="required",
        inputs=(1, None),
        params={**DELLA, "normalize": Param(BY_AGREED, True, bool)},
        kind="elementwise",
        random=True,
        by_row=True,
        nonzero_sum=True,
        check=lambda given: keep_range_problem(given["density"], given["epsilon"]),
    ),
    "della_linear": Method(
        name="della_linear",
        doc="task arithmetic over task vectors thinned at random, large magnitudes of a row less than small ones",
        base="required",
        inputs=(1, None),
        params={**DELLA, "normalize": Param(BY_SUM, False, bool)},
        kind="elementwise",
        random=True,
        by_row=True,
        nonzero_sum=True,
        check=lambda given: keep_range_problem(given["density"], given["epsilon"]),
    ),
    "breadcrumbs": Method(
        name="breadcrumbs",
        doc="task arithmetic over task vectors without their largest and smallest magnitudes",
        base="required",
        inputs=(1, None),
        params={**CRUMBS, "normalize": Param(BY_SUM, False, bool)},
        kind="measured",
        transparent=True,
        nonzero_sum=True,
        check=lambda given: crumbs_problem(given["density"], given["gamma"]),
    ),
    "breadcrumbs_ties": Method(
        name="breadcrumbs_ties",
        doc="sign election over task vectors without their largest and smallest magnitudes",
        base="required",
        inputs=(1, None),
        params={**CRUMBS, "normalize": Param(BY_AGREED, False, bool)},
        kind="measured",
        transparent=True,
        nonzero_sum=True,
        check=lambda given: crumbs_problem(given["density"], given["gamma"]),
    ),
    "sce": Method(
        name="sce",
        doc="where task vectors differ most, what agrees with the elected sign, weighted by how much each changed",
        base="required",
        inputs=(1, None),
        params={
            "select_topk": Param(
                "the share of elements that is merged, those with the largest variance",
                1.0,
                low=0,
                high=1,
                low_open=True,
            )
        },
        kind="measured",
    ),
    "arcee_fusion": Method(
        name="arcee_fusion",
        doc="the base with the elements of one member whose change matters most",
        base="required",
        inputs=(1, 1),
        params={},
        kind="measured",
        by_row=True,
    ),
}
