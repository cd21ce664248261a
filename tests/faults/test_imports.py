"""`fuse import` under faults: its child or itself is killed at any place; the folder is whole, or what it was."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.harness import command
from tests.faults.import_scene import ImportScene, living, make_import
from tests.faults.scene import Scene
from tests.faults.table import failing, interrupted, killed, telling
from tests.faults.trial import Trial, broken, sweep, trial

NEVER = "kill:child:1000000000"  # so that the lines are counted


@pytest.fixture(scope="module")
def mapper(scene: Scene) -> Iterator[ImportScene]:
    yield make_import(scene.folder.parent / "imports")


def steps(mapper: ImportScene, *, force: bool = False) -> tuple[str, ...]:
    return command(mapper.words(force), mapper.root("steps", force=force)).steps


def lines(mapper: ImportScene) -> list[str]:
    """The lines of fuse that the process runs which unpickles."""
    ran = command(mapper.words(), mapper.root("lines"), fault=NEVER)
    assert ran.code == 0, ran.err
    return [step for step in ran.steps if step.startswith("child ")]


def said(trials: list[Trial]) -> set[tuple[int, str]]:
    return {(one.ran.code, one.ran.sentence) for one in trials}


def test_the_process_that_unpickles_is_killed(mapper: ImportScene) -> None:
    count = len(lines(mapper))
    assert count > 60
    trials = sweep(mapper, "child", [f"kill:child:{k}" for k in (1, 2, *range(3, count, count // 5), count)])
    assert broken(trials) == []
    told = "the process that opened it was killed; nothing was written (out of memory?)"
    assert said(trials) == {(4, f"{mapper.file}: {told}")}
    assert {one.left for one in trials} == {"absent"}


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("SIGSEGV", 3, "the process that opened it broke (SIGSEGV); nothing was written"),
        ("SIGTERM", 3, "the process that opened it broke (SIGTERM); nothing was written"),
        ("SIGXCPU", 3, "takes more than 60 s to be opened; nothing was written"),
    ],
)
def test_it_ends_by_a_signal(mapper: ImportScene, name: str, code: int, told: str) -> None:
    trials = sweep(mapper, "child", [f"signal:child:{len(lines(mapper)) // 2}:{name}"], force=True)
    assert broken(trials) == [] and {one.left for one in trials} == {"old"}
    assert said(trials) == {(code, f"{mapper.file}: {told}")}


@pytest.mark.parametrize("force", [False, True])
def test_the_command_is_killed_before_every_call(mapper: ImportScene, force: bool) -> None:
    calls = steps(mapper, force=force)
    trials = sweep(mapper, "killed", telling(calls, killed(calls))[force::2], force=force)
    assert broken(trials) == []
    assert all(one.ran.code == -9 for one in trials[:-2]) and len(trials) > 5
    assert {one.left for one in trials} >= {"old, partial" if force else "absent, partial"}


def test_every_call_fails_once(mapper: ImportScene) -> None:
    calls = steps(mapper)
    trials = sweep(mapper, "failing", telling(calls, failing(calls))[::2])
    assert broken(trials) == []
    assert {one.ran.code for one in trials if one.left == "absent"} == {4}


def test_it_is_interrupted_at_every_call(mapper: ImportScene) -> None:
    calls = steps(mapper)
    trials = sweep(mapper, "interrupted", telling(calls, interrupted(calls))[::3])
    assert broken(trials) == []
    assert {one.ran.code for one in trials} <= {0, 130, 143} and {one.ran.code for one in trials} >= {130, 143}


def test_nobody_goes_on_unpickling_for_a_command_that_was_killed(mapper: ImportScene) -> None:
    place, group = len(lines(mapper)) * 2 // 3, []

    def kill(pid: int) -> None:
        group.append(pid)
        until = time.monotonic() + 20
        while len(living(pid)) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(living(pid)) == 2
        time.sleep(0.3)  # it has come to where it waits
        os.kill(pid, signal.SIGKILL)

    found = trial(mapper, mapper.root("orphan"), f"sleep:child:{place}:60", meanwhile=kill, repeat=False)
    assert broken([found]) == [] and found.ran.code == -9
    until = time.monotonic() + 5
    while living(group[0]) and time.monotonic() < until:
        time.sleep(0.01)
    assert living(group[0]) == []
    assert broken([trial(mapper, mapper.root("orphan"))]) == []
