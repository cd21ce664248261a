"""The faults themselves: they must happen, and what breaks a promise must be seen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import SITE, Ran, command, digests
from tests.faults.scene import Scene
from tests.faults.trial import LOST, OTHER, PARTIAL_OUTPUT, TRACEBACK, Trial, _look


def python(program: str, root: Path, fault: str = "") -> subprocess.CompletedProcess[str]:
    log = root.parent / "log"
    log.unlink(missing_ok=True)
    env = {**os.environ, "PYTHONPATH": str(SITE), "FUSE_TEST_ROOT": str(root), "FUSE_TEST_LOG": str(log),
           "FUSE_TEST_FAULT": fault}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=env, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


WRITER = """
import os, fcntl, pathlib, shutil
os.mkdir("f")
h = os.open("f/a", os.O_RDWR | os.O_CREAT)
fcntl.flock(h, fcntl.LOCK_EX)
os.posix_fallocate(h, 0, 8)
os.pwrite(h, b"12345678", 0)
os.fsync(h)
pathlib.Path("f/b").write_text("text")
open("/dev/null", "w").close()
d = os.open("f", os.O_RDONLY); os.fsync(d)
os.rename("f", "g")
pathlib.Path("g/c").touch()
shutil.rmtree("g")
"""


def test_every_call_is_seen(root: Path) -> None:
    done = python(WRITER, root)
    assert done.returncode == 0, done.stderr
    told = (root.parent / "log").read_text().splitlines()
    assert told[0].startswith("pid ")
    assert told[1:-5] == [
        "mkdir f", "open f/a", "flock f/a", "posix_fallocate f/a", "pwrite f/a", "fsync f/a", "open f/b", "fsync f",
        "rename f g",
    ]  # fmt: skip
    assert told[-5].startswith("open g/c") and sorted(told[-4:]) == [
        "rmdir g",
        "unlink g/a",
        "unlink g/b",
        "unlink g/c",
    ]


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        ("kill:mkdir:1", {}),
        ("kill:pwrite:1", {"f/": "", "f/a": "\0" * 8}),
        ("torn:pwrite:1", {"f/": "", "f/a": "1234\0\0\0\0"}),
        ("kill:any:9", {"f/": "", "f/a": "12345678", "f/b": "text"}),
        ("cut:any:9:empty", {}),  # nothing ever synced the folder that f is in
        ("cut:rename:1:empty", {}),
    ],
)
def test_what_is_left(root: Path, fault: str, left: dict[str, str]) -> None:
    assert python(WRITER, root, fault).returncode == -9
    assert {p: (root / p).read_text() if not p.endswith("/") else "" for p in digests(root)} == left


@pytest.mark.parametrize(("how", "text"), [("zeros", "\0\0\0\0"), ("empty", "")])
def test_a_power_cut_takes_what_was_not_synced(root: Path, how: str, text: str) -> None:
    program = """
import os, pathlib
def sync(path):
    h = os.open(path, os.O_RDONLY); os.fsync(h); os.close(h)
os.mkdir("f"); pathlib.Path("f/a").write_text("data"); pathlib.Path("f/b").write_text("data")
sync("f/a"); sync("f"); sync(".")
pathlib.Path("f/c").write_text("data"); sync("f/c")
os.rename("f", "g")
os.rename("g", "h")
os.mkdir("end")
"""
    assert python(program, root, f"cut:mkdir:2:{how}").returncode == -9
    assert {p: (root / p).read_text() for p in digests(root) if not p.endswith("/")} == {"f/a": "data", "f/b": text}


def test_an_error_and_a_change(root: Path) -> None:
    (root.parent / "input").write_text("input")
    done = python(
        "import os\ntry: os.mkdir('a')\nexcept OSError as e: print(e.errno)\nos.mkdir('b')", root,
        f"ENOSPC:mkdir:1 change:mkdir:2:flip={root.parent}/input",
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("28\n", "")
    assert (root.parent / "input").read_text() == "inpuu"


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("(p / 'out').mkdir(); (p / 'out' / 'config.json').write_text('{}')", PARTIAL_OUTPUT),
        ("(p / '.out.tmp').mkdir()", OTHER),
        ("shutil.rmtree(p / 'out', ignore_errors=True)", LOST),
        ("(p / 'out' / 'fuse.json').write_bytes((p / 'out' / 'fuse.json').read_bytes())", LOST),
    ],
)  # fmt: skip
def test_a_broken_promise_is_seen(scene: Scene, program: str, kind: str) -> None:
    import shutil

    from tests.faults.trial import OUT, _places

    force = kind == LOST
    p = scene.root("seen", force=force)
    before = _places(p / OUT)
    exec(program, {"p": p, "shutil": shutil})  # what a bad writer would leave
    found = Trial("", Ran(-9, "", "", 0, ()))
    _look(found, scene, p, force, before)
    assert [k for k, _ in found.wrong][:1] == [kind]


def test_a_traceback_is_seen(scene: Scene) -> None:
    found = Trial("", Ran(1, "", "Traceback (most recent call last):\n", 0, ()))
    _look(found, scene, scene.root("seen"), False, {})
    assert found.wrong[0][0] == TRACEBACK


def test_a_fresh_process_takes_the_same_steps(scene: Scene) -> None:
    forked, fresh = (command(scene.words(), scene.root(f"fresh{f}"), fresh=f) for f in (False, True))
    assert forked.code == fresh.code == 0
    assert sorted(forked.steps) == sorted(fresh.steps)
