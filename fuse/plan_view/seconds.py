"""How long a merge takes, on paper: from seconds of a core that docs/benchmarks.md measured for each GB."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fuse.plan import Plan

# seconds of a core for each GB read and written: the clock of `fuse bare` at 1B on two cores, less what starting takes
RATES: Mapping[str, float] = {
    "linear": 0.5, "task_arithmetic": 0.5, "passthrough": 0.5, "slerp": 0.8, "model_stock": 0.8, "dare_linear": 0.8,
    "dare_ties": 0.8, "ties": 1.8, "breadcrumbs": 2.1, "breadcrumbs_ties": 2.1, "della": 2.7, "della_linear": 2.7,
}  # fmt: skip
PLAIN = 0.5  # of copies and folds
HASHED = 0.95  # of sha256
START = 2.2  # seconds for Python, the plan, torch and numba


@dataclass(frozen=True)
class Seconds:
    """at_least: seconds on the clock, with sha256, where the disk is not slower than `disk_rate` (bytes a second).

    rates: what was used, by method. unknown: methods without a rate, which are not in `at_least`.
    """

    at_least: float
    cores: int
    disk_rate: float
    rates: Mapping[str, float]
    unknown: tuple[str, ...]


def seconds_of(plan: Plan, cores: int = 0) -> Seconds:
    """The time that a plan takes on so many cores, those of this process where left out."""
    cores = cores or len(os.sched_getaffinity(0))
    moved: dict[str, int] = {}
    for row in plan.rows:
        method = row.method if row.action == "merge" else ""
        moved[method] = moved.get(method, 0) + row.nbytes + sum(s.tensor.nbytes for s in row.reads)
    rates = {method: RATES.get(method, PLAIN) for method in moved if method in RATES or not method}
    work = sum(rates[method] * moved[method] for method in rates)
    whole = plan.bytes_read + plan.bytes_written
    busy = (work + HASHED * whole) / 1e9 / cores
    unknown = tuple(sorted(set(moved) - set(rates)))
    used = {method: rate for method, rate in rates.items() if method}
    return Seconds(round(START + busy, 1), cores, whole / max(busy, 0.001), used, unknown)
