"""How many visual tokens a branch may write (`max_tokens`), fixed before the model runs.

Needs no torch: `fuse plan` counts with it, the processor lays the prompt out with it, and the model selects as many.
The rules here are our choice; VisionFuse prunes tokens but does not say how (arXiv 2412.01289).
"""

from collections.abc import Sequence

from fuse.errors import RecipeError

PRUNES = ("pool", "norm", "cls", "similarity")


def share(runs: Sequence[int], max_tokens: int | None, *, where: object = "") -> tuple[int, ...]:
    """What each run of visual tokens keeps, so that together they keep `max_tokens`.

    In proportion to the runs' lengths, rounded by largest remainder, ties to the earlier run. A run keeps at least one
    token: runs whose part would be smaller get one, and the others share the rest. No run grows. Without a limit, or
    where the runs fit, they stay as they are.

    share((576, 144), 100) == (80, 20); share((576, 144, 1), 100) == (79, 20, 1)

    Raises RecipeError when the budget has less than one token for each run.
    """
    if max_tokens is None or sum(runs) <= max_tokens:
        return tuple(runs)
    open_runs = [i for i, length in enumerate(runs) if length > 0]
    if max_tokens < len(open_runs):
        raise RecipeError(
            f"max_tokens {max_tokens} is too few: this branch writes one image in {len(open_runs)} runs of visual"
            " tokens, and each keeps at least one",
            where=where, hint=f"max_tokens {len(open_runs)} is the smallest that works here",
        )  # fmt: skip
    kept, rest = [0] * len(runs), max_tokens
    total = sum(runs)
    while small := [i for i in open_runs if rest * runs[i] < total]:
        for i in small:
            kept[i] = 1
        open_runs = [i for i in open_runs if i not in small]
        rest, total = rest - len(small), sum(runs[i] for i in open_runs)
    for i in open_runs:
        kept[i] = rest * runs[i] // total
    left = rest - sum(kept[i] for i in open_runs)
    for i in sorted(open_runs, key=lambda i: (-(rest * runs[i] % total), i))[:left]:
        kept[i] += 1
    return tuple(kept)


def budgeted_layout(
    layout: Sequence[int | str], max_tokens: int | None, *, where: object = ""
) -> tuple[int | str, ...]:
    """The layout of an image (`Prepared.layout`) with every run cut to its share; marker tokens stay as they are.

    budgeted_layout(("<img>", 256, "</img>"), 64) == ("<img>", 64, "</img>")

    Raises RecipeError as `share` does.
    """
    shares = iter(share(runs_of(layout), max_tokens, where=where))
    return tuple(next(shares) if isinstance(item, int) else item for item in layout)


def runs_of(layout: Sequence[int | str]) -> tuple[int, ...]:
    """The lengths of a layout's runs of visual tokens, in order, without its markers."""
    return tuple(item for item in layout if isinstance(item, int))


def present(runs: Sequence[int], shares: Sequence[int], tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Runs and shares of an image for which the branch gave fewer tokens than its layout holds (SliME's selection).

    The tokens fill the runs in order, the last ones come out short or empty; a share is at most what its run holds.
    """
    held: list[int] = []
    for length in runs:
        held.append(max(0, min(length, tokens - sum(held))))
    return tuple(held), tuple(min(keep, length) for keep, length in zip(shares, held, strict=True))
