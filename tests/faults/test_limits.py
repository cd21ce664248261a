"""Little memory, few open files: one sentence, and nothing half there."""

from tests.faults.harness import forked_size
from tests.faults.scene import Scene
from tests.faults.trial import broken, trial


def test_little_memory(scene: Scene) -> None:
    trials = []
    for more in (0, 4, 40, 100, 400, 1000):
        trials.append(trial(scene, scene.root("memory"), limits={"AS": forked_size() + (more << 20)}))
    assert broken(trials) == []
    assert {one.ran.code for one in trials} == {0, 4}


def test_few_open_files(scene: Scene) -> None:
    trials = [trial(scene, scene.root("files"), limits={"NOFILE": count}) for count in (6, 10, 12, 13, 15, 16, 18, 64)]
    assert broken(trials) == []
    assert {one.ran.code for one in trials} <= {0, 2, 4} and trials[-1].ran.code == 0
