"""SIGKILL at every call and at any moment: the target is absent, old or whole, and the same command finishes it."""

import time

from tests.faults.harness import command, kill_after
from tests.faults.scene import Scene
from tests.faults.table import killed, moments, telling, torn
from tests.faults.trial import Trial, broken, sweep, trial


def steps(scene: Scene) -> tuple[str, ...]:
    return command(scene.words(), scene.root("steps")).steps


def were_killed(trials: list[Trial]) -> bool:
    """All but what the last numbers stand for: threads make a call more or less."""
    return all(one.ran.code == -9 for one in trials[:-2])


def test_before_every_call(scene: Scene) -> None:
    calls = steps(scene)
    trials = sweep(scene, "killed", telling(calls, killed(calls)))
    assert broken(trials) == []
    assert were_killed(trials) and len(trials) > 25
    assert {one.kept for one in trials} > {0, 3}, "no kill fell between two finished files"
    assert {one.left for one in trials} >= {"absent", "absent, partial", "whole, partial"}


def test_before_every_call_that_replaces_an_older_output(scene: Scene) -> None:
    all_steps = command(scene.words(force=True), scene.root("steps", force=True), fault="").steps
    place = next(k for k, step in enumerate(all_steps) if step.startswith("rename "))
    faults = list(killed(all_steps))
    trials = sweep(scene, "replaced", [*faults[:place:20], *faults[place - 4 :]], force=True)
    assert broken(trials) == []
    assert were_killed(trials)
    assert {one.left for one in trials} >= {"old, partial", "whole, partial"}


def test_half_of_a_write(scene: Scene) -> None:
    trials = sweep(scene, "torn", [*torn(steps(scene))][::4])
    assert broken(trials) == []
    assert were_killed(trials)


def test_at_ten_moments(scene: Scene) -> None:
    begun: list[float] = []
    command(scene.words(), scene.root("moments"), meanwhile=lambda _: begun.append(time.monotonic()))
    seconds = time.monotonic() - begun[0]
    trials = [trial(scene, scene.root("moments"), meanwhile=kill_after(s)) for s in moments(10, seconds)]
    assert broken(trials) == []
    assert any(one.ran.code == -9 for one in trials), "the merges were over before they were killed"


def test_again_and_again(scene: Scene) -> None:
    """Killed, gone on with, killed again, and so on: what is finished stays finished."""
    root, kept = scene.root("again"), []
    for _ in range(4):
        found = trial(scene, root, "kill:posix_fallocate:2", repeat=False)  # when a second file is begun
        assert broken([found]) == []
        kept.append(found.kept)
    assert kept == sorted(kept)
    assert broken([trial(scene, root, "kill:rename:1")]) == []


def test_in_a_process_of_its_own(scene: Scene) -> None:
    trials = [trial(scene, scene.root("own"), meanwhile=kill_after(s), fresh=True) for s in moments(2, 0.1, seed=1)]
    assert broken(trials) == []
