"""Ctrl-C, SIGTERM and SIGHUP at every call: one sentence, soon, and the same command goes on."""

import re

from tests.faults.harness import command
from tests.faults.scene import Scene
from tests.faults.table import LOCKS, at_locks, interrupted, telling
from tests.faults.trial import broken, sweep

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143}
SOON = 2.0  # seconds
KEPT = re.compile(r"interrupted; ([1-3]) of 3 files are kept in \.out\.partial: the same command goes on from there")


def test_at_every_call(scene: Scene) -> None:
    steps = command(scene.words(), scene.root("steps")).steps
    trials = sweep(scene, "interrupted", telling(steps, interrupted(steps))[::3])
    assert broken(trials) == []
    late = [f"{one.fault}: {one.ran.took:.1f} s" for one in trials if one.ran.took > SOON]
    assert len(late) <= len(trials) // 10, late  # of a machine that does other things too
    for one in trials[:-2]:
        assert one.ran.code == CODES[one.fault.rsplit(":", 1)[1]], one
        said = one.ran.sentence
        assert said in {"interrupted; nothing was written", "interrupted; out is whole"} or KEPT.fullmatch(said), said
    assert {one.kept for one in trials} > {0, 3}


def test_right_after_a_lock(scene: Scene) -> None:
    """Python raises a signal there too, and would leave the lock closed and its threads waiting."""
    faults = list(at_locks(command(scene.words(), scene.root("steps"), fault=LOCKS).steps))
    assert len(faults) > 30
    trials = sweep(scene, "interrupted", faults[: -len(faults) // 10 : 4])
    assert broken(trials) == []
    assert {one.ran.code for one in trials} == set(CODES.values())


def test_in_a_process_of_its_own(scene: Scene) -> None:
    ran = command(scene.words(), scene.root("own"), fault="signal:posix_fallocate:1:SIGINT", fresh=True)
    assert (ran.code, ran.out, ran.sentence) == (130, "", "interrupted; nothing was written")
    assert ran.took < 5 * SOON
    assert list(scene.root("own").iterdir()) == []
