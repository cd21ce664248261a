"""Runs a program and measures it: seconds on the clock and of processors, and the most anonymous memory."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuse.errors import MachineError

POLL = 0.05  # seconds between two looks at the memory
PROC = Path("/proc")


@dataclass(frozen=True)
class Ran:
    """One run. clock, cpu: seconds, those of processors user and system of the whole tree. anonymous: bytes, the most
    seen in a look every 50 ms, summed over the tree; mapped files do not count. failed: why, empty where it went well.
    """

    clock: float
    cpu: float
    anonymous: int
    failed: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_child(command: Sequence[str], env: Mapping[str, str], timeout: float) -> Ran:
    """Run to the end, or kill it with all that it started after `timeout` seconds.

    Raises MachineError where /proc tells nothing, or the program does not start.
    """
    if not (PROC / "self/status").exists():
        raise MachineError("memory is measured in /proc, which is not here", hint="this benchmark needs Linux")
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        try:
            child = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        except OSError as error:
            raise MachineError(f"does not start: {error.strerror}", where=command[0]) from error
        watch = Watch(child.pid, began + timeout)
        try:
            watch.start()
            _, status, used = os.wait4(child.pid, 0)
            clock = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            watch.ended.set()
            watch.join()
            if child.returncode is None:
                watch.kill()
                child.wait()
        failed = ""
        if watch.late:
            failed = f"stopped after {timeout:g} s"
        elif child.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").split("\n")
            failed = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {child.returncode}")
        return Ran(clock, used.ru_utime + used.ru_stime, watch.most, failed)


class Watch(threading.Thread):
    """Looks at a process and all below it until `ended`, and kills its session when it is late."""

    def __init__(self, pid: int, until: float) -> None:
        super().__init__(daemon=True)
        self.pid, self.until = pid, until
        self.ended, self.late, self.most = threading.Event(), False, 0

    def run(self) -> None:
        while not self.ended.wait(POLL):
            self.most = max(self.most, sum(map(anonymous, tree(self.pid))))
            if time.perf_counter() > self.until and not self.late:
                self.late = True
                self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def tree(pid: int) -> list[int]:
    """The process and its descendants; those that end meanwhile may be missing."""
    found, further = [], [pid]
    while further:
        found.append(further.pop())
        for file in (PROC / str(found[-1])).glob("task/*/children"):
            try:
                further += map(int, file.read_text().split())
            except OSError:
                continue  # ended between the two lines
    return found


def anonymous(pid: int) -> int:
    """Bytes of a process that are in memory and belong to no file; 0 when it has ended."""
    try:
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0)
