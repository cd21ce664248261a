"""The experiment with pretrained parts: its split, its questions, its projector, the adapters that are shipped."""

import json
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # the tools are scripts, which import each other as siblings

from real_emoji import PARTS, SKILLS, asked, plain, read_emoji, trained, write_questions  # noqa: E402
from real_evidence import BOTH, ROWS  # noqa: E402
from real_members import split_adapter  # noqa: E402
from train_real_parts import Projector, view  # noqa: E402

KINDS = ["Objects", "Flags", "Food & Drink", "Animals & Nature"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"name": f"THING {n}", "category": KINDS[n % 4], "subcategory": "x"} for n in range(800)]
    (tmp_path / "emoji.json").write_text(json.dumps([*rows, rows[0]]), encoding="utf-8")
    return tmp_path


def test_names_are_plain_words() -> None:
    assert plain("Côte d\u2019Ivoire Flag") == "côte divoire flag"
    assert plain("E-MAIL SYMBOL") == "e-mail symbol"
    assert plain("Keycap: 5") == "keycap 5"


def test_a_name_counts_once(folder: Path) -> None:
    assert len(read_emoji(folder)) == 800


def test_what_is_new_in_a_question_was_never_trained(folder: Path) -> None:
    emoji = read_emoji(folder)
    known = {one.name for one in trained(emoji)}
    assert 0.7 * len(emoji) < len(known) < 0.9 * len(emoji)
    seen: dict[str, set[object]] = {}
    for split in ("tune", "test"):
        rows = asked(emoji, split, 30)
        assert [row["skill"] for row in rows] == [skill for skill in SKILLS for _ in range(30)]
        for row in rows:
            assert str(row["image"]).startswith("images/google/")
            name = next(one.name for one in emoji if one.picture("google") == row["image"])
            assert (name in known) == ("new artwork" in str(row["skill"]))
        seen[split] = {row["image"] for row in rows}
    assert not seen["tune"] & seen["test"]


def test_choices_are_four_different_texts_of_one_kind(folder: Path) -> None:
    emoji = read_emoji(folder)
    kinds = {one.name: one.kind for one in emoji}
    for row in asked(emoji, "test", 30):
        choices = row.get("choices")
        if choices is None:
            assert row["metric"] == "exact"
            continue
        assert isinstance(choices, list)
        assert len(set(choices)) == 4
        assert row["answer"] in choices
        if str(row["skill"]).startswith("name"):
            assert len({kinds[name] for name in choices}) == 1


def test_the_same_questions_twice(folder: Path) -> None:
    first = write_questions(folder, "test", 5).read_text()
    assert write_questions(folder, "test", 5).read_text() == first
    assert len(first.splitlines()) == 5 * len(SKILLS)


def test_the_shipped_projector_is_the_trained_one() -> None:
    torch.manual_seed(0)
    seen = torch.randn(7, 5, 12) * 3 + 2
    trained_one = Projector(seen, 9, 6, 0.1)
    plain_one, factors = split_adapter({n: t.detach() for n, t in trained_one.plain().items()})
    assert not factors
    weights = {name: t.double().numpy() for name, t in plain_one.items()}
    inner = seen.double().numpy() @ weights["0.weight"].T + weights["0.bias"]
    gelu = inner * torch.special.ndtr(torch.from_numpy(inner)).numpy()
    wanted = gelu @ weights["2.weight"].T + weights["2.bias"]
    np.testing.assert_allclose(trained_one(seen).detach().numpy(), wanted, atol=1e-5)


def test_a_view_is_the_picture_moved_on_white() -> None:
    image = Image.new("RGB", (64, 64), "red")
    assert view(image, 0, Random(0)) is image
    moved = np.asarray(view(image, 1, Random(0)))
    assert moved.shape == (64, 64, 3)
    red = (moved == [255, 0, 0]).all(-1)
    assert 0.8**2 - 0.03 < red.mean() < 1
    assert (moved[~red] == 255).all()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_rows_are_recipes(row, tmp_path: Path) -> None:
    from fuse.recipe_yaml import load_recipe

    file = tmp_path / "recipe.yaml"
    file.write_text(row.recipe.replace("PARTS", str(tmp_path)), encoding="utf-8")
    recipe = load_recipe(file).recipe
    assert len(recipe.vision or ()) == len(row.vision)


def test_the_budget_is_that_of_the_longer_branch() -> None:
    (row,) = [row for row in ROWS if row.label == "equal budget"]
    assert "max_tokens: 20" in row.vision[0]
    assert row.vision[1] == BOTH[1]
    assert PARTS == 10
