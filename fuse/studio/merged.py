"""A merge from the page: the steps of `fuse merge`, with progress for the page instead of the terminal."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fuse.errors import RecipeError
from fuse.planner import make_plan
from fuse.recipe_yaml import LoadedRecipe
from fuse.sizes import counted, size_text
from fuse.stores.address import is_store
from fuse.studio.jobs import Job


@dataclass(frozen=True)
class Made:
    """A folder that was merged, and the sentence about it."""

    folder: Path
    told: str


def merge_into(loaded: LoadedRecipe, out: str, job: Job) -> Made:
    """Run a recipe into the folder `out`, which must not be there; `job` hears of the bytes.

    A relative path is taken from where the studio was started. Errors are those of `make_plan` and `fuse.merge.merge`,
    and RecipeError for an address that is no folder of this machine.
    """
    from fuse.merge import merge, ready

    if not out.strip():
        raise RecipeError("the output has no name", hint="such as build/fused")
    if is_store(out):
        raise RecipeError("the studio writes into folders of this machine", where=out, hint="fuse merge RECIPE OUT")
    target = Path(out.strip()).expanduser().absolute()
    if target.exists():
        raise RecipeError("the output already exists", where=target, hint="name another folder")
    began = time.monotonic()
    plan = make_plan(loaded)
    ready(plan, target, force=False)
    job.total = plan.bytes_written
    done = merge(plan, target, progress=job.advance)
    count = Counter(row.action for row in plan.rows)
    earlier = f" ({counted(done.resumed, 'file')} from an earlier run)" if done.resumed else ""
    return Made(
        target,
        f"{counted(count['merge'], 'tensor')} merged, {len(plan.rows) - count['merge']:,} copied or made, "
        f"{len(plan.drops):,} left out; {size_text(plan.bytes_written)} in {time.monotonic() - began:.1f} s{earlier}",
    )
