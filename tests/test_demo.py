"""`make demo`, on members of the zoo's shape with random weights."""

import re
from pathlib import Path
from random import Random

import pytest
import torch
from click.testing import CliRunner

from fuse.ask import load
from tests import zoo_tools  # noqa: F401 - the path of the tools
from tests.test_zoo import RECIPES, zoo  # noqa: F401 - a fixture

import demo  # isort: skip
import evidence  # isort: skip
from zoo_world import new_scene, questions  # isort: skip


def test_demo(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    (zoo / "visionfuse.yaml").write_text((RECIPES / "visionfuse.yaml").read_text())
    rows = [row for row in evidence.two() if row.parent or row.label == "VisionFuse"]
    monkeypatch.setattr(evidence, "TABLES", {"two": (lambda: rows, ("color", "color+shape"))})
    monkeypatch.setenv("COLUMNS", "150")
    before = torch.get_num_threads()
    try:
        args = [str(tmp_path / "out"), "--zoo", str(zoo), "--each", "2"]
        ran = CliRunner().invoke(demo.main, args, catch_exceptions=False)
    finally:
        torch.set_num_threads(before)
    assert ran.exit_code == 0
    headings = re.findall(r"^(\d)\. ", ran.output, re.MULTILINE)
    assert headings == list("123456")
    assert "task_arithmetic of hue + form over base" in ran.output
    assert "4 questions (test)" in ran.output and "VisionFuse" in ran.output
    assert "│ hue    │ color and place               │ 24 x 24 pixels    │ 9 " in ran.output
    assert load(tmp_path / "out" / "fused").model.config.model_type == "fuse"


def test_the_demo_asks_what_can_be_answered() -> None:
    for seed in range(50):
        scene = new_scene(Random(seed), 4, 4)
        known = {one.text: one for one in questions(scene, Random(0))}
        for text, answer, needs in demo.asked(scene):
            assert known[text].answer == answer
            sight = {"hue": {"color"}, "form": {"shape"}, "either": set(), "both": {"color", "shape"}}
            assert known[text].needs == sight[needs]
