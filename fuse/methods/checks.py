"""What several parameters of a method should be together, as sentences; None where all is right.

Used by the table, so that a plan refuses, and by the functions. No torch here.
"""

from collections.abc import Sequence

from fuse.methods.method import sums_to_zero

# What numbers like 0.9 + 0.1 may be off by.
ROUNDING = 1e-9


def arc_problem(weights: Sequence[float]) -> str | None:
    """Weights that give no place on an arc."""
    return "the weights sum to zero, so they give no place on the arc" if sums_to_zero(weights) else None


def keep_range_problem(density: Sequence[float], epsilon: Sequence[float]) -> str | None:
    """Probabilities from density - epsilon to density + epsilon that are none, member by member."""
    for middle, half in zip(density, epsilon, strict=True):
        if not middle - half > 0 or not middle + half <= 1 + ROUNDING or not half >= 0:
            return (
                f"density - epsilon should be greater than 0 and density + epsilon at most 1, "
                f"not {middle:g} - {half:g} and {middle:g} + {half:g}"
            )
    return None


def crumbs_problem(density: Sequence[float], gamma: Sequence[float]) -> str | None:
    """A share that is kept and one dropped from above that do not fit into the whole, member by member."""
    for kept, dropped in zip(density, gamma, strict=True):
        if not kept > 0 or not dropped >= 0 or not kept + dropped <= 1 + ROUNDING:
            return f"density should be greater than 0 and density + gamma at most 1, not {kept:g} and {dropped:g}"
    return None
