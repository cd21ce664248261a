"""A real pretrained checkpoint of 135M parameters, merged with fine-tunes of itself, through the command line."""

import json
import sys
from pathlib import Path

import torch

from fuse.ask import ask_many, load
from tests.cli import fuse_here

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # the tools are scripts, which import each other as siblings

from demo_members import write_members  # noqa: E402


def test_two_real_fine_tunes_in_one(tmp_path: Path) -> None:
    write_members(tmp_path)
    recipe = (ROOT / "recipes/demo/two_skills.yaml").read_text().replace("../../build/demo/", "")
    (tmp_path / "recipe.yaml").write_text(recipe)
    ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "merged", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert ": 272 tensors merged, 0 copied, 0 left out; 269.0 MB in " in ran.out

    rows = [json.loads(line) for line in (ROOT / "recipes/demo/questions.jsonl").read_text().splitlines()]
    rows = [*rows[:6], *rows[-6:]]  # six of each skill
    assert [row["skill"] for row in rows] == ["dates"] * 6 + ["extract"] * 6
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        right = {}
        for name in ("base", "dates", "extract", "merged"):
            answers = ask_many(load(tmp_path / name), [row["question"] for row in rows], max_tokens=28)
            matches = [a == row["answer"] for a, row in zip(answers, rows, strict=True)]
            right[name] = sum(matches[:6]), sum(matches[6:])
    finally:
        torch.set_num_threads(before)
    assert sum(right["base"]) <= 3 and right["dates"][1] <= 1 and right["extract"][0] <= 1, right
    assert right["merged"][0] >= 4 and right["merged"][1] >= 4, right
