"""A disk that is full, has a quota, or breaks: one sentence, and nothing half there."""

import json
import subprocess
import sys

import pytest

from tests.faults.harness import ROOT, command
from tests.faults.scene import Scene
from tests.faults.table import failing, full_from, telling
from tests.faults.trial import broken, sweep, trial


@pytest.mark.parametrize("force", [False, True])
def test_every_call_fails_once(scene: Scene, force: bool) -> None:
    steps = command(scene.words(force), scene.root("steps", force=force)).steps
    trials = sweep(scene, "failing", telling(steps, failing(steps))[force::3], force=force)
    assert broken(trials) == []
    assert all(one.ran.code == 4 for one in trials if one.left != "whole" and one.ran.code), (
        "a full disk is the machine's"
    )
    assert sum(one.ran.code == 4 for one in trials) > len(trials) // 2


def test_full_from_some_call_on(scene: Scene) -> None:
    steps = command(scene.words(), scene.root("steps")).steps
    trials = sweep(scene, "full", list(full_from(steps))[::9])
    assert broken(trials) == []
    assert all(one.ran.code == 4 and one.left == "absent" for one in trials if one.ran.code), trials


def test_a_file_may_not_grow(scene: Scene) -> None:
    sizes = (100, 700, 1300, 2000, 30_000, 39_000)
    trials = [trial(scene, scene.root("limit"), limits={"FSIZE": size}) for size in sizes]
    assert broken(trials) == []
    assert {(one.ran.code, one.left) for one in trials} == {(4, "absent")}


def test_a_disk_that_is_full(scene: Scene) -> None:
    """A file system of its own, filled by another program at some calls of the merge."""
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-m", "tests.faults.full_disk", str(scene.folder.parent)], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["broken"] == []
    assert {tuple(one) for one in told["ended"]} == {(4, "absent")}, told
