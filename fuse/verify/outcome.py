"""What a check found."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Outcome:
    """One check. told: what was looked at and how much, why there was nothing to look at, or what is wrong."""

    told: str
    outcome: Literal["passed", "skipped", "failed"] = "passed"
    counts: dict[str, int] = field(default_factory=dict)


def skipped(why: str) -> Outcome:
    """A check that had nothing to look at."""
    return Outcome(why, "skipped")
