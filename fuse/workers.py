"""One plan written by many machines that share a disk: each writes some of the files, one puts the folder together.

Worker i of n writes every n-th file into the same `.NAME.partial` and keeps a journal of its own there; while it works
it shares the lock of the main journal, which `commit` takes for itself.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from fuse.errors import FuseError, MachineError, RecipeError
from fuse.handles import reason
from fuse.inputs import Inputs, bring, check_unchanged, hashed_beside
from fuse.journal import Journal
from fuse.merge import check_branches, constants, copied, is_whole, makes, noting
from fuse.output import check_target
from fuse.plan import Plan
from fuse.unfinished import FOLDER, WORKERS, check_same, enter, home_of, moved, normal

# who numbers the workers: number, count, and what the first is called
NUMBERED = (
    ("RANK", "WORLD_SIZE", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("SLURM_PROCID", "SLURM_NTASKS", ""),
)
NUMBER = re.compile(r"[0-9]{1,12}")
ANEW = "remove it, or fuse merge RECIPE OUT --restart, which begins anew in one process"  # of another one's work


@dataclass(frozen=True)
class Worker:
    """number: from 0 to count - 1."""

    number: int
    count: int

    @property
    def journal(self) -> str:
        return f"worker-{self.number:04d}-of-{self.count:04d}.jsonl"

    def share(self, things: list[Any]) -> list[Any]:
        """Every count-th thing."""
        return things[self.number :: self.count]


def worker_of(text: str, environment: Mapping[str, str] = os.environ) -> Worker:
    """The worker that "3/16" says, counted from 0, or that "auto" finds: torchrun's or Slurm's numbers.

    Raises RecipeError for anything else.
    """
    if text == "auto":
        for number, count, least in NUMBERED:
            found = [environment.get(key, "") for key in (number, count)]
            if all(NUMBER.fullmatch(value) for value in found):
                first = environment.get(least, "0")
                text = f"{int(found[0]) - int(first if NUMBER.fullmatch(first) else 0)}/{found[1]}"
                break
        else:
            told = ", ".join(f"{number} and {count}" for number, count, _ in NUMBERED)
            raise RecipeError("nothing numbers this worker", where="--worker auto", hint=f"set {told}, or say 0/4")
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise RecipeError(f"{text!r} is not a worker such as 0/4, the first of four", where="--worker")
    return Worker(int(match[1]), int(match[2]))


def inputs_of(worker: Worker, inputs: Inputs) -> dict[str, Path]:
    """The files whose sha256 the worker computes, by the name that every machine has for them."""
    names = {one.name: file for of in inputs.values() for file, one in of.items()}
    return {name: names[name] for name in worker.share(sorted(names))}


def share_bytes(plan: Plan, worker: Worker) -> int:
    """The bytes of the tensors that a worker writes."""
    return sum(plan.rows[i].nbytes for _, numbers in worker.share(copied(plan)) for i in numbers)


def work(
    plan: Plan, target: Path, worker: Worker, *, force: bool = False, progress: Callable[[int], None] = lambda _: None,
    threads: int | None = None, device: str = "cpu", hashed: bool = True, sync: bool = True,
) -> int:  # fmt: skip
    """Write the worker's share of the plan's files, but for those that an earlier run of it wrote; how many it has.

    Raises as `fuse.merge.merge` does; RecipeError also where other work on the same output is in the way.
    """
    check_target(plan, target, force=force)
    check_branches(plan)
    from fuse.engine.execute import cores, execute
    from fuse.team import made, team

    stop, inputs, home = Event(), bring(plan), home_of(target)
    making = normal(makes(plan, inputs, device))
    share = worker.share(copied(plan))
    files = inputs_of(worker, inputs)
    enter(home)
    team_of(home, worker.count)
    (home / FOLDER).mkdir(exist_ok=True)
    with (
        closing(Journal(home, target, sync=sync, shared=True)) as whole,
        closing(Journal(home, target, worker.journal, sync=sync)) as journal,
        _telling(home, journal, len(share)),
    ):
        if moved(home / FOLDER, whole):
            told = "holds the rest of a merge that was killed at its end"
            raise RecipeError(told, where=home, hint="fuse merge RECIPE OUT --restart begins anew")
        for one in (whole, journal):
            check_same(home, one, making, ANEW)
        journal.begin(making)
        for name, shard in list(journal.shards.items()):
            if not is_whole(home / FOLDER / name, shard, stop, hashed=hashed):
                journal.lose(name)
        left = [one for one in share if one[0] not in journal.shards]
        for name, _ in left:
            (home / FOLDER / name).unlink(missing_ok=True)
        progress(sum(plan.rows[i].nbytes for name, own in share if name in journal.shards for i in own))
        unread = {file: name for name, file in files.items() if hashed and name not in journal.hashes}
        with team(cores(), stop) as pool, hashed_beside([*unread], pool, stop) as hashes:
            execute(
                plan.rows, left, home / FOLDER, progress, constants(plan), threads=threads, device=device,
                hashed=hashed, sync=sync, stop=stop,
                written=noting(journal, home / FOLDER, sync=sync),
            )  # fmt: skip
            for file, digest in made(hashes, stop).items():
                journal.add_hash(unread[file], digest.sha256)
        check_unchanged(inputs)
        journal.finish(0)
    return len(share)


@contextmanager
def _telling(home: Path, journal: Journal, files: int) -> Iterator[None]:
    """Failures in words, with what is kept: everything, since others may be at work beside."""

    def told() -> str:
        return f"{len(journal.shards)} of its {files} files are kept in {home}: the same command goes on from there"

    try:
        yield
    except FuseError:
        raise
    except OSError as error:
        raise MachineError(f"{reason(error)}; {told()}", where=error.filename or home) from None
    except BaseException as stop:
        stop.add_note(told())
        raise


def team_of(home: Path, *more: int) -> int:
    """How many workers share the work. RecipeError where they do not agree."""
    counts = {int(found[2]) for path in home.iterdir() if (found := WORKERS.fullmatch(path.name))} | set(more)
    if len(counts) > 1:
        told = " and ".join(map(str, sorted(counts)))
        raise RecipeError(f"holds the work of teams of {told}", where=home, hint=ANEW)
    return counts.pop()
