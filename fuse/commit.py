"""What the workers of a merge wrote, put together, after a look whether it is still what they wrote."""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

from fuse.digests import file_digest
from fuse.errors import RecipeError
from fuse.handles import unread
from fuse.inputs import bring
from fuse.journal import Journal, Shard
from fuse.merge import Merged, complete, copied, makes
from fuse.output import SMALL_FILES, check_target
from fuse.partial import partial_folder
from fuse.plan import Plan
from fuse.safetensors_header import stamp
from fuse.unfinished import FOLDER, check_same, home_of, normal, settle
from fuse.workers import ANEW, Worker, team_of

AGAIN = "run it, or run it again: it goes on where it was"


def commit(
    plan: Plan, target: Path, *, force: bool = False, progress: Callable[[int], None] = lambda _: None,
    device: str = "cpu", sync: bool = True, check: bool = False,
) -> Merged:  # fmt: skip
    """Put together what all workers wrote: `target` appears whole, or not at all.

    Every worker has to have come to its end, the one without a file too: it hashes inputs. A file whose stamp is no
    longer that which its worker noted is read again, and its sha256 must be the worker's; check: every file is. Raises
    RecipeError, with everything kept, where a worker has not finished or a file is another one; else as
    `fuse.merge.merge` does.
    """
    settle(target)
    check_target(plan, target, force=force)
    inputs = bring(plan)
    making = makes(plan, inputs, device)
    shards, hashes = _gathered(plan, target, making)
    _check_written(plan, home_of(target), shards, progress, check=check)
    hashed = all(shard.sha256 for shard in shards.values())
    with partial_folder(
        target, making, files=len(plan.shards), size=plan.bytes_written + SMALL_FILES, force=force, sync=sync,
        adopted=shards,
    ) as partial:  # fmt: skip
        partial.keep(lambda *_: True)
        found = {file: hashes.get(one.name, "") for of in inputs.values() for file, one in of.items()}
        fits = complete(plan, partial, inputs, found, progress, hashed=hashed)
    return Merged(fits)


def _gathered(plan: Plan, target: Path, making: Mapping[str, Any]) -> tuple[dict[str, Shard], dict[str, str]]:
    """The files that workers wrote, and the sha256 of inputs by name. RecipeError where there is less than all."""
    home = home_of(target)
    names = sorted(path.name for path in home.glob("worker-*.jsonl")) if home.is_dir() else []
    if not names:
        raise RecipeError(
            "no worker has written anything of it", where=target, hint="fuse merge RECIPE OUT --worker 0/4"
        )
    count, planned = team_of(home), {name for name, _ in copied(plan)}
    shards: dict[str, Shard] = {}
    hashes: dict[str, str] = {}
    ended: set[str] = set()
    for name in names:
        with closing(Journal(home, target, name)) as journal:
            check_same(home, journal, normal(making), ANEW)
            shards |= {name: shard for name, shard in journal.shards.items() if name in planned}
            hashes |= journal.hashes
            ended |= {name} if journal.complete is not None else set()
    for number, (name, _) in enumerate(copied(plan)):
        if name not in shards:
            told = f"worker {number % count}/{count} has not written {name} yet"
            raise RecipeError(told, where=home, hint=AGAIN)
    late = next((number for number in range(count) if Worker(number, count).journal not in ended), None)
    if late is not None:
        raise RecipeError(f"worker {late}/{count} has not finished", where=home, hint=AGAIN)
    return shards, hashes


def _check_written(
    plan: Plan, home: Path, shards: Mapping[str, Shard], progress: Callable[[int], None], *, check: bool
) -> None:
    """RecipeError for a file that is not as its worker wrote it; check: all are read."""
    from fuse.engine.execute import cores
    from fuse.team import finished, team

    count, stop = team_of(home), Event()
    if check and (bare := next((name for name, _ in copied(plan) if not shards[name].sha256), "")):
        told = f"{bare} was written with --no-hash, and there is nothing to check it by"
        raise RecipeError(told, where=home, hint="leave --check out, or run the workers again without --no-hash")

    def look(number: int, name: str) -> None:
        if not _as_written(home / FOLDER / name, shards[name], stop, check=check):
            told = f"{name} is not as worker {number % count}/{count} wrote it"
            raise RecipeError(told, where=home, hint="run it again")

    with team(cores(), stop) as pool:
        jobs = {pool.submit(look, number, name): own for number, (name, own) in enumerate(copied(plan))}
        for job in finished(jobs, stop):
            progress(sum(plan.rows[i].nbytes for i in jobs[job]))


def _as_written(path: Path, shard: Shard, stop: Event, *, check: bool) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP}:
            return False
        raise unread(error, path) from None
    try:
        now = os.fstat(handle)  # of an open file: a network's disk answers for it anew
    finally:
        os.close(handle)
    if not stat.S_ISREG(now.st_mode) or now.st_size != shard.bytes:
        return False
    if stamp(now) == shard.stamp and not check:
        return True
    return bool(shard.sha256) and file_digest(path, (), stop).sha256 == shard.sha256
