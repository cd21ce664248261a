"""A shell's ways of running a command: closed pipes, no terminal, other masks, a disk that cannot be written."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.harness import ROOT, command, digests
from tests.faults.scene import Scene

SAID = "out: 21 tensors merged, 0 copied, 4 left out; 78.5 kB in"
# what a shell runs -> (exit code of it all, how stdout begins, stderr, whether the output is there)
LINES = {
    "$FUSE merge $R out | head -1": (0, SAID, "", True),
    "$FUSE merge $R out | true": (0, "", "", True),
    "set -o pipefail; $FUSE plan $R --all | head -1": (0, "members\n", "", False),
    "$FUSE merge $R out >&-": (0, "", "", True),
    "$FUSE merge $R out < /dev/null > told": (0, "", "", True),
    "$FUSE merge $R out <&- 2>&-": (0, SAID, "", True),
    "umask 077; $FUSE merge $R out > /dev/null; stat -c %a out out/config.json out/*.safetensors": (
        0, "700\n600\n600\n600\n600\n", "", True,
    ),
    "$PYTHON -O -m fuse merge $R out": (0, SAID, "", True),
    "env -u HOME LC_ALL=C PYTHONUTF8=0 $FUSE merge $R out": (0, SAID, "", True),
    "nohup setsid -w $FUSE merge $R out 2> /dev/null": (0, SAID, "", True),
    "mkdir ro; unshare -Urm sh -c 'mount --bind ro ro && mount -o remount,ro,bind ro && $FUSE merge $R ro/out'": (
        4, "", "fuse: ro: cannot be written (Read-only file system)\n", False,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shells(scene: Scene) -> dict[str, tuple[subprocess.CompletedProcess[str], Path]]:
    """All lines, two at a time, each in a folder of its own."""
    roots = {line: scene.root(f"shell{k}") for k, line in enumerate(LINES)}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "FUSE": f"{sys.executable} -m fuse",
           "R": str(scene.recipe), "OMP_NUM_THREADS": "1"}  # fmt: skip

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line], cwd=roots[line], env=env, capture_output=True, text=True, check=False, timeout=240
        )

    with ThreadPoolExecutor(2) as pool:
        return {line: (done, roots[line]) for line, done in zip(LINES, pool.map(run, LINES), strict=True)}


@pytest.mark.parametrize("line", LINES)
def test_from_a_shell(shells: dict, scene: Scene, line: str) -> None:
    done, root = shells[line]
    code, out, err, there = LINES[line]
    if "unshare" in line and "ount" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (code, err), done
    assert done.stdout.startswith(out) and "Traceback" not in done.stdout
    assert (root / "out").exists() is there
    assert not there or digests(root / "out") == scene.whole
    assert not list(root.rglob(".*.partial"))


def test_two_at_once(scene: Scene) -> None:
    """The second is refused and changes nothing; the first goes on."""
    root, second = scene.root("two"), []
    command(["--version"], root)  # from now on a command begins at once

    def meanwhile(pid: int) -> None:
        until = time.monotonic() + 60
        while (root.parent / "two.steps").read_text().count("\nfsync ") < 3 and time.monotonic() < until:
            time.sleep(0.01)
        second.append((pid, command(scene.words(), root)))

    ran = command(scene.words(), root, fault="sleep:fsync:3:10", fresh=True, meanwhile=meanwhile)
    ((pid, other),) = second
    assert (ran.code, digests(root / "out")) == (0, scene.whole)
    assert (other.code, other.out) == (2, "")
    assert other.err == f"fuse: out: another fuse is writing it (process {pid} on {os.uname().nodename})\n"
