"""Inputs that change, shrink or vanish while they are read: one sentence that names the file, and no output."""

import pytest

from tests.faults.harness import command
from tests.faults.scene import Scene
from tests.faults.trial import TRACEBACK, Trial, broken, trial

WEIGHTS = ["flip", "rewrite", "truncate", "empty", "append", "vanish"]


def changed(scene: Scene, file: str, how: str, place: str) -> Trial:
    """A merge during which another program does that to a file of a member."""
    own = scene.copy("own")
    found = trial(own, scene.root("changed"), f"change:{place}:{how}={own.folder / file}", repeat=False)
    found.wrong = [one for one in found.wrong if "an input is not what it was" not in one[1]]  # it was changed
    return found


@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_that_change(scene: Scene, how: str) -> None:
    steps = command(scene.words(), scene.root("steps")).steps
    read = next(k for k, step in enumerate(steps, 1) if step.startswith("open .out.partial/folder/generation"))
    trials = [changed(scene, "b/model.safetensors", how, f"any:{k}") for k in (1, 14, read - 1)]
    assert broken(trials) == []
    for one in trials:
        assert (one.ran.code, one.left) in {(3, "absent"), (-7, "absent, partial")}, one
        if one.ran.code == 3:
            file = scene.folder.parent / "own" / "members" / "b" / "model.safetensors"
            assert one.ran.sentence.startswith(f"{file}: "), one
    assert trials[0].ran.code == 3


@pytest.mark.parametrize("file", ["base/tokenizer.json", "base/config.json", "a/config.json", "b/tokenizer.json"])
@pytest.mark.parametrize("how", ["append", "vanish"])
def test_small_files_that_change(scene: Scene, file: str, how: str) -> None:
    """Either it is noticed, or the output is what the plan saw."""
    trials = [changed(scene, file, how, "any:12")]
    assert [one for one in broken(trials) if TRACEBACK in one] == []
    assert {(one.ran.code, one.left) for one in trials} <= {(0, "whole"), (3, "absent")}, [one.wrong for one in trials]
