"""A command with a fault: how it ended, what it did to files, and what it left.

`command` runs it in a forked child of a process that has imported everything, `command(..., fresh=True)` as
`python -m fuse` in a process of its own. Both have `site/faulty.py` in place, which makes the faults.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.attacks.harness import ROOT, end_zygote, start_zygote

SITE = Path(__file__).parent / "site"
# what merges and imports need; less of it makes a smaller process, which forks sooner. A method is left to be imported when it
# is wanted, as it is in a process of its own: where no more files can be open that is the first thing to fail
AHEAD = """
torch safetensors.torch fuse.cli fuse.commands.merge fuse.commands.import_ fuse.merge fuse.planner fuse.plan_view fuse.card
fuse.sidecars fuse.output fuse.recipe_yaml fuse.engine.execute fuse.progress fuse.workers fuse.families.text.llama
"""
WALL = 120.0  # seconds; a command that hangs is killed


@dataclass(frozen=True)
class Ran:
    """code: the exit code, of a killed process the negative signal. steps: the calls that changed files. took: seconds
    from the signal that it sent itself to its end, where it did."""

    code: int
    out: str
    err: str
    seconds: float
    steps: tuple[str, ...] = field(repr=False)
    took: float = 0.0

    @property
    def sentence(self) -> str:
        """What it said, without its "fuse: "; AssertionError where it said more or less than one sentence."""
        said = self.err.removeprefix("\n") if self.code == 130 else self.err  # a terminal has ^C in the line
        assert said.startswith("fuse: ") and said.count("\n") == 1, self.err[-2000:]
        return said.removeprefix("fuse: ").rstrip("\n")


def command(
    words: Sequence[object], root: Path, *, fault: str = "", limits: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None, fresh: bool = False, meanwhile: Callable[[int], None] | None = None,
) -> Ran:  # fmt: skip
    """Run `fuse words` in the folder `root`; only calls that change something there count for the fault.

    limits: by the name of a resource; the steps are not told then, since that would take some of it. meanwhile: called with the process's id once it has begun to change something.
    """
    log = root.parent / f"{root.name}.steps"
    log.unlink(missing_ok=True)
    told = {
        **os.environ, "FUSE_TEST_ROOT": str(root), "FUSE_TEST_LOG": "" if limits else str(log), "FUSE_TEST_FAULT": fault, **(env or {}),
        "PYTHONPATH": os.pathsep.join((str(SITE), str(ROOT))),
    }  # fmt: skip
    began = time.monotonic()
    start = _fresh if fresh else _forked
    code, out, err = start([str(word) for word in words], root, told, dict(limits or {}), log, meanwhile)
    ended = time.monotonic()
    lines = log.read_text().splitlines()[1:] if log.exists() else []
    sent = [float(line.split()[1]) for line in lines if line.startswith("sent ")]
    steps = tuple(line for line in lines if not line.startswith("sent "))
    return Ran(code, out, err, ended - began, steps, ended - sent[0] if sent else 0.0)


def _forked(words: list[str], root: Path, env: dict[str, str], limits: dict[str, int], log: Path, meanwhile) -> tuple:
    zygote = _zygote()
    assert zygote.stdin and zygote.stdout
    asked = {"argv": words, "cwd": str(root), "env": env, "limits": limits, "wall": WALL}
    zygote.stdin.write(json.dumps(asked) + "\n")
    zygote.stdin.flush()
    if meanwhile:
        _when_begun(log, meanwhile)
    ran = json.loads(zygote.stdout.readline())
    return ran["code"], ran["out"], ran["err"]


def _fresh(words: list[str], root: Path, env: dict[str, str], limits: dict[str, int], log: Path, meanwhile) -> tuple:
    def limit() -> None:
        import resource

        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    process = subprocess.Popen(
        [sys.executable, "-m", "fuse", *words], cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="backslashreplace", preexec_fn=limit,  # noqa: PLW1509
    )  # fmt: skip
    try:
        if meanwhile:
            _when_begun(log, meanwhile, process)
        out, err = process.communicate(timeout=WALL)
    finally:
        process.kill()
    return process.returncode, out, err


def _when_begun(log: Path, meanwhile: Callable[[int], None], process: subprocess.Popen | None = None) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and (process is None or process.poll() is None):
        lines = log.read_text().splitlines() if log.exists() else []
        if lines:
            meanwhile(int(lines[0].split()[1]))
            return
        time.sleep(0.001)


def kill_after(seconds: float) -> Callable[[int], None]:
    """SIGKILL so long after the first change."""

    def kill(pid: int) -> None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):  # it was done
            os.kill(pid, signal.SIGKILL)

    return kill


@cache
def _zygote() -> subprocess.Popen[str]:
    return start_zygote(*AHEAD.split(), PYTHONPATH=os.pathsep.join((str(SITE), str(ROOT))), FUSE_TEST_ROOT="")


def forked_size() -> int:
    """Bytes of address space that a forked command begins with."""
    status = Path(f"/proc/{_zygote().pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmSize"))


def stop() -> None:
    """End the process that children are forked from, where there is one."""
    if _zygote.cache_info().currsize:
        end_zygote(_zygote())
        _zygote.cache_clear()


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file under the folder, by its path in there; folders end with a slash."""
    return {
        str(path.relative_to(folder)) + "/" * path.is_dir(): "" if path.is_dir() else _sha256(path)
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
