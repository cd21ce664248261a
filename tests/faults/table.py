"""Which faults are tried, as rows: each takes the calls of an unbroken merge and gives faults for `trial`."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

Faults = Callable[[Sequence[str]], Iterator[str]]
# calls for which a full disk, a quota or a broken disk is told; removing needs no room
GROWING = {"open", "mkdir", "posix_fallocate", "write", "pwrite", "copy_file_range", "fsync", "rename"}
LOCKS = "kill:lock:1000000000"  # a fault that never comes
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def killed(steps: Sequence[str]) -> Iterator[str]:
    """SIGKILL before every call."""
    return (f"kill:any:{k}" for k in range(1, len(steps) + 1))


def torn(steps: Sequence[str]) -> Iterator[str]:
    """SIGKILL after half of the bytes of every write."""
    for call in ("write", "pwrite"):
        yield from (f"torn:{call}:{k}" for k in range(1, _count(steps, call) + 1))


def cut(steps: Sequence[str]) -> Iterator[str]:
    """A power cut before every call."""
    return (f"cut:any:{k}:{('zeros', 'empty')[k % 2]}" for k in range(1, len(steps) + 1))


def failing(steps: Sequence[str]) -> Iterator[str]:
    """Each call that needs the disk fails once, for one of three reasons."""
    for k, step in enumerate(steps, 1):
        if step.split()[0] in GROWING:
            yield f"{('ENOSPC', 'EDQUOT', 'EIO')[k % 3]}:any:{k}"


def full_from(steps: Sequence[str]) -> Iterator[str]:
    """A disk that is full from some call on, and stays so."""
    for k, step in enumerate(steps, 1):
        if step.split()[0] in GROWING:
            yield " ".join(
                f"ENOSPC:{call}:{_count(steps[: k - 1], call) + 1}+" for call in sorted(GROWING - {"rename", "fsync"})
            )


def interrupted(steps: Sequence[str]) -> Iterator[str]:
    """A signal at every call."""
    return (f"signal:any:{k}:{SIGNALS[k % 3]}" for k in range(1, len(steps) + 1))


def at_locks(steps: Sequence[str]) -> Iterator[str]:
    """A signal right after every lock that the main thread takes; steps: as `LOCKS` lets them be told."""
    return (f"signal:lock:{k}:{SIGNALS[k % 3]}" for k in range(1, _count(steps, "lock") + 1))


def moments(count: int, seconds: float, seed: int = 0) -> list[float]:
    """So many seconds after the first change at which to kill, spread over the time that a merge takes."""
    drawn = random.Random(seed)
    return [drawn.uniform(0, seconds) for _ in range(count)]


def telling(steps: Sequence[str], faults: Iterable[str]) -> list[str]:
    """Of one fault for each call, those at the ends of runs of one call on files of one folder."""
    names = ["", *(step.rsplit("/", 1)[0] for step in steps), ""]
    ends = [k for k in range(len(steps)) if not names[k] == names[k + 1] == names[k + 2]]
    listed = list(faults)
    return [listed[k] for k in ends if k < len(listed)]


def _count(steps: Sequence[str], call: str) -> int:
    return sum(step.split()[0] == call for step in steps)
