"""Little memory, few open files: one sentence, and nothing half there."""

from tests.faults.harness import forked_size
from tests.faults.scene import Scene
from tests.faults.trial import broken, trial


def test_little_memory(scene: Scene) -> None:
    trials = []
    for more in (0, 1, 4, 16, 40, 64, 100, 200, 400, 1000):
        trials.append(trial(scene, scene.root("memory"), limits={"AS": forked_size() + (more << 20)}))
    assert broken(trials) == []
    assert {one.ran.code for one in trials} == {0, 4}


def test_few_open_files(scene: Scene) -> None:
    quiet = {"FUSE_TEST_LOG": ""}  # it would take one of them
    trials = [
        trial(scene, scene.root("files"), limits={"NOFILE": count}, env=quiet) for count in (6, *range(8, 20), 24, 64)
    ]
    assert broken(trials) == []
    assert {one.ran.code for one in trials} <= {0, 2, 4} and trials[-1].ran.code == 0
