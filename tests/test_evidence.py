"""What docs/evidence.md says of the shipped members holds: each sees its own, and the fused model sees both."""

import json
from pathlib import Path

import numpy as np
import pytest

from fuse.evaluate.questions import read_questions
from tests import zoo_tools  # noqa: F401 - the path of the tools

import evidence  # isort: skip
from zoo_questions import SKILLS, TEXT_SKILLS, write_questions  # isort: skip

ZOO = Path(__file__).parent.parent / "recipes" / "zoo"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Scores by row and skill, at 20 questions of each skill of the test split."""
    rows = [row for row in evidence.two() if row.label in ("hue", "form", "VisionFuse", "hue+stranger")]
    out = tmp_path_factory.mktemp("evidence")
    found = evidence.fill(rows, ("color", "shape", "color+shape"), ZOO, out / "two", "test", 20)
    assert (out / "two.md").read_text().startswith("60 questions (test), right out of 100\n\n|  |  | color | shape |")
    table = json.loads(json.dumps(found))["tables"]["all"]
    skills = [row for row in table["rows"] if row["kind"] == "skill"]
    return {
        label: {row["name"]: row["scores"][number]["score"] for row in skills}
        for number, label in enumerate(table["folders"])
    }


def test_each_member_sees_its_own(told: dict[str, dict[str, float]]) -> None:
    assert told["hue"]["color"] > 0.3 + told["hue"]["shape"]
    assert told["form"]["shape"] > 0.3 + told["form"]["color"]


def test_the_fused_model_sees_both_and_joins_them(told: dict[str, dict[str, float]]) -> None:
    fused = told["VisionFuse"]
    assert min(fused["color"], fused["shape"]) > 0.55
    assert fused["color+shape"] > 0.2 + max(told["hue"]["color+shape"], told["form"]["color+shape"])


def test_a_member_of_another_family_does_not_fuse(told: dict[str, dict[str, float]]) -> None:
    assert max(told["hue+stranger"].values()) < 0.2


def test_a_blind_row_is_asked_about_words_alone(tmp_path: Path) -> None:
    row = next(row for row in evidence.expert() if row.blind)
    data = write_questions(tmp_path, "test", 3, ("color", *TEXT_SKILLS))
    asked = read_questions(data)
    scores = evidence._scores(row, asked, data, ZOO, tmp_path)
    assert np.isnan(scores).tolist() == [question.skill == "color" for question in asked]


def test_splits_ask_different_questions(tmp_path: Path) -> None:
    files = [write_questions(tmp_path / split, split, 5, (*SKILLS, *TEXT_SKILLS)) for split in ("tune", "test")]
    first, second = ([(q.text, q.answers) for q in read_questions(file)] for file in files)
    assert len(first) == len(second) == 50
    assert first != second
