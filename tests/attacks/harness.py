"""One hostile input through the real command line: what it says, how long it takes, what it leaves behind.

CASES = [Attack("duplicate key", recipe("members: {a: x, a: y}"), 2, "recipe.yaml:1:16: members.a: the key ...")]

@pytest.mark.parametrize("case", CASES, ids=str)
def test_refuses(case, tmp_path):
    hold(case, tmp_path)
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_SECONDS, MOST_BYTES = 5.0, 1 << 30
COUNT = 5_000_000  # to which the processor that MOST_SECONDS is for counts in half a second
WALL = 90.0  # a case that waits for something that never comes is killed after so long


@dataclass(frozen=True)
class Ran:
    """How a command ended. `seconds` by the clock, `cpu` of all its threads; `peak` is the largest resident set in bytes
    of the whole child (wait4's ru_maxrss), with the imported libraries, about 200 MB, that every case begins with."""

    code: int  # a negative number is the signal that killed it
    out: str
    err: str
    seconds: float
    cpu: float
    peak: int


@dataclass(frozen=True)
class Attack:
    """A row of a table: what `make` puts into an empty folder, the words behind `fuse`, and the one right answer.

    sentence: the whole line on stderr without its "fuse: ", with the case's folder as "."; of a recipe with several
    mistakes each is a line.
    """

    name: str
    make: Callable[[Path], object]
    code: int
    sentence: str
    argv: str | tuple[str, ...] = "merge recipe.yaml out"
    env: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return self.name


def attack(
    argv: str | tuple[str, ...], folder: Path, *, env: Mapping[str, str] | None = None,
    limits: Mapping[str, int] | None = None, wall: float = WALL,
) -> Ran:  # fmt: skip
    """Run `fuse argv` in the folder, in a forked child of a process that has imported everything.

    argv: words, or a line that is split at spaces. env: added to this process's. limits: by the name of a resource
    (`{"NOFILE": 64}`); -1 is none. wall: seconds after which it is killed. What libraries read from the environment as
    they are imported stays, but for the settings of huggingface_hub (HF_*).
    """
    words = argv.split() if isinstance(argv, str) else [*argv]
    asked = {
        "argv": words, "cwd": str(folder), "env": {**os.environ, **(env or {})}, "limits": dict(limits or {}),
        "wall": wall,
    }  # fmt: skip
    zygote = _zygote()
    assert zygote.stdin and zygote.stdout
    zygote.stdin.write(json.dumps(asked) + "\n")
    zygote.stdin.flush()
    return Ran(**json.loads(zygote.stdout.readline()))


def listing(folder: Path) -> list[str]:
    """Everything under the folder, links not followed."""
    return sorted(str(Path(at, name)) for at, folders, files in os.walk(folder) for name in folders + files)


def refused(ran: Ran, code: int, sentence: str, folder: Path, before: list[str]) -> None:
    """The command said the one sentence, in time and within memory, and left nothing.

    Time is that of the processor, so that a busy machine fails no case; one that sleeps is killed (`WALL`).
    """
    told = ran.err.replace(f"{folder}/", "./").replace(str(folder), ".")
    assert told == f"fuse: {sentence}\n", f"exit {ran.code}, said:\n{told[-3000:]}\n{ran.out[-500:]}"
    assert (ran.code, ran.out) == (code, "")
    within(ran)
    assert listing(folder) == before, "something was left behind, or taken away"


def within(ran: Ran) -> None:
    """The bounds of time and memory alone."""
    assert ran.cpu < MOST_SECONDS or ran.cpu < MOST_SECONDS * slowness(), f"took {ran.cpu:.1f} s of the processor"
    assert ran.seconds < WALL, f"took {ran.seconds:.1f} s"
    assert ran.peak < MOST_BYTES, f"took {ran.peak / 2**20:.0f} MiB"


def slowness() -> float:
    """How much longer this machine takes, just now, than the one that the bound of time is for; 1 where it is faster."""
    began, total = time.process_time(), 0
    for number in range(COUNT):
        total += number & 3
    return max(1.0, 2 * (time.process_time() - began))


def hold(case: Attack, folder: Path) -> Ran:
    """Make the case in the empty folder, run it, and demand its answer."""
    case.make(folder)
    before = listing(folder)
    ran = attack(case.argv, folder, env=case.env)
    refused(ran, case.code, case.sentence, folder, before)
    return ran


@cache
def _zygote() -> subprocess.Popen[str]:
    """Started at the first attack of a test process."""
    return start_zygote()


def stop() -> None:
    """End the zygote, where there is one."""
    if _zygote.cache_info().currsize:
        end_zygote(_zygote())
        _zygote.cache_clear()


def start_zygote(*ahead: str, **env: str) -> subprocess.Popen[str]:
    """A process that commands are forked from; it ends when its input does. ahead: what it imports, else all that verbs
    do. env: for it, besides this process's."""
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.zygote", *ahead], cwd=ROOT, env={**os.environ, **own, **env}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def end_zygote(zygote: subprocess.Popen[str]) -> None:
    assert zygote.stdin
    zygote.stdin.close()
    zygote.wait(30)
