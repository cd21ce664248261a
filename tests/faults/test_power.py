"""A power cut: what no fsync has promised is lost, and still nothing is half there."""

from tests.faults.harness import command
from tests.faults.scene import Scene
from tests.faults.table import cut, telling
from tests.faults.trial import broken, sweep


def test_before_every_call(scene: Scene) -> None:
    steps = command(scene.words(), scene.root("steps")).steps
    trials = sweep(scene, "cut", telling(steps, cut(steps))[::2])
    assert broken(trials) == []


def test_while_an_older_output_is_replaced(scene: Scene) -> None:
    steps = command(scene.words(force=True), scene.root("steps", force=True)).steps
    place = next(k for k, step in enumerate(steps) if step.startswith("rename "))
    trials = sweep(scene, "cut", [*cut(steps)][place - 4 :], force=True)
    assert broken(trials) == []
    assert {one.left for one in trials} >= {"old, partial", "whole, partial"}


def test_the_disk_has_all_before_the_output_takes_its_place(scene: Scene) -> None:
    steps = [step.split(" ") for step in command(scene.words(), scene.root("steps")).steps]
    at = steps.index(["rename", ".out.partial/folder", "out"])
    assert steps[at + 1] == ["fsync", "."], "nothing is removed before the disk has the new name"
    inside = {path for call, path, *_ in steps[:at] if path.startswith(".out.partial/folder/")}
    for path in inside:
        last = max(k for k, step in enumerate(steps[:at]) if step[1] == path)
        assert steps[last][0] == "fsync", f"{path}: its last change is not on the disk"
    folder = max(
        k
        for k, step in enumerate(steps[:at])
        if step[:2] == ["open", ".out.partial/folder/model.safetensors.index.json"]
    )
    assert ["fsync", ".out.partial/folder"] in steps[folder:at]


def test_the_index_comes_last(scene: Scene) -> None:
    steps = [step.split(" ") for step in command(scene.words(), scene.root("steps")).steps]
    made = [path for call, path, *_ in steps if call == "open" and path.startswith(".out.partial/folder/")]
    assert made[-1] == ".out.partial/folder/model.safetensors.index.json"
