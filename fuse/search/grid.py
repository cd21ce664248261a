"""Grid search: every point, in one line that the objective may look at as a whole."""

from collections.abc import Generator

from fuse.search.space import Point, Space

Key = tuple[float, ...]  # larger is better; compared place by place
Strategy = Generator[
    list[Point], list[Key | None], None
]  # yields points to try, is sent their keys (None: no candidate)


def grid(space: Space, *, steps: int) -> Strategy:
    """All points of the grid at once."""
    yield space.grid(steps)
