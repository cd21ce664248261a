"""The zoo's world: questions with one answer, splits without common scenes, pictures whose grey tells no color."""

import colorsys
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.evaluate.questions import check_images, read_questions
from tests import zoo_tools  # noqa: F401 - the path of the tools

import zoo_questions  # isort: skip
import zoo_world  # isort: skip
from zoo_world import COLORS, GREY, HUES, KINDS, NUMBERS, PLACES, SIDE, VOCABULARY, Scene, draw, new_scene, questions  # isort: skip

SEEDS = st.integers(0, 10**9)


def right(scene: Scene, text: str) -> set[str]:
    """Every answer that a question has in a scene, by looking at all things."""
    match text.removesuffix(" ?").split():
        case ["how", "many", "things"]:
            return {NUMBERS[len(scene)]}
        case ["is", "anything", "at", place]:
            return {"yes" if any(thing.place == place for thing in scene) else "no"}
        case ["what", kind, "is", "at", place]:
            return {getattr(thing, kind) for thing in scene if thing.place == place}
        case ["where", "is", value]:
            return {t.place for t in scene if value in (t.color, t.shape, t.letter)}
        case ["what", kind, "is", value]:
            return {f"{t.place} {getattr(t, kind)}" for t in scene if value in (t.color, t.shape, t.letter)}
    raise AssertionError(text)


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_every_question_has_one_answer(seed: int) -> None:
    random = Random(seed)
    scene = new_scene(random)
    asked = questions(scene, random)
    assert len({one.text for one in asked}) == len(asked)
    for one in asked:
        assert right(scene, one.text) == {one.answer}, one
        assert set(f"{one.text} {one.answer}".split()) <= set(VOCABULARY), one
    for one in asked:
        assert one.needs == (frozenset(one.skill.split("+")) if one.skill not in ("count", "presence") else frozenset())


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 8))
def test_nothing_is_shared_in_a_scene(seed: int, count: int) -> None:
    scene = new_scene(Random(seed), count, count)
    assert len(scene) == count
    for name in ("place", *KINDS):
        assert len({getattr(thing, name) for thing in scene}) == count


def test_no_word_has_two_meanings() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_splits_share_no_scene_and_a_split_is_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes: list[frozenset] = []

    def noted(random: Random) -> Scene:
        scene = new_scene(random)
        scenes.append(frozenset(scene))
        return scene

    monkeypatch.setattr(zoo_questions, "new_scene", noted)
    monkeypatch.setattr(zoo_questions, "draw", lambda scene, random: draw(scene[:1], random))  # quick
    for split in ("tune", "test"):
        zoo_questions.write_questions(tmp_path / split, split, 100)
    count = 100 * len(zoo_questions.SKILLS)
    assert len(scenes) == 2 * count == len(set(scenes))
    zoo_questions.write_questions(tmp_path / "again", "test", 100)
    assert scenes[2 * count :] == scenes[count : 2 * count]


def test_a_split_is_a_data_file(tmp_path: Path) -> None:
    file = zoo_questions.write_questions(tmp_path, "test", 3)
    found = read_questions(file)
    check_images(found)
    assert [one.skill for one in found] == [skill for skill in zoo_questions.SKILLS for _ in range(3)]
    assert len({one.images for one in found}) == len(found)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        random = Random(f"2 {row['skill']} {int(row['id'][-3:])}")
        assert right(new_scene(random), row["question"]) == {row["answer"]}


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_things_are_drawn_at_their_places(seed: int) -> None:
    random = Random(seed)
    scene = new_scene(random)
    cells = np.asarray(draw(scene, random)).reshape(3, SIDE // 3, 3, SIDE // 3, 3).transpose(0, 2, 1, 3, 4)
    ground = [cells[divmod(PLACES.index(place), 3)].reshape(-1, 3) for place in PLACES]
    shade = next(cell[0] for cell, place in zip(ground, PLACES, strict=True) if place not in {t.place for t in scene})
    covered = {place: (cell != shade).any(1).mean() for cell, place in zip(ground, PLACES, strict=True)}
    for place in PLACES:
        if place in {thing.place for thing in scene}:
            assert covered[place] > 0.1, place
        else:
            assert covered[place] == 0, place


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_a_seed_gives_one_picture(seed: int) -> None:
    first, second = (draw(new_scene(Random(seed)), Random(seed)).tobytes() for _ in range(2))
    assert first == second != draw(new_scene(Random(seed)), Random(seed + 1)).tobytes()


def test_grey_tells_no_color() -> None:
    """Luminance of every color is dark or bright by the same chance, and covers the same ranges; hue tells it."""
    grey = {}
    for color in COLORS:
        random = Random(1)
        fills = np.array([zoo_world._paint(color, random)[0] for _ in range(2000)]) / 255
        grey[color] = np.sort(fills @ GREY)
        hue = np.array([colorsys.rgb_to_hsv(*fill)[0] for fill in fills])
        away = np.abs((hue - HUES[color] + 0.5) % 1 - 0.5)
        others = min(abs((HUES[other] - HUES[color] + 0.5) % 1 - 0.5) for other in COLORS if other != color)
        assert away.max() < others / 2, (color, away.max())
    for color, values in grey.items():
        assert ((values > 0.11) & (values < 0.26) | (values > 0.69) & (values < 0.86)).all()
        gap = max(abs(np.searchsorted(values, x) - np.searchsorted(grey["red"], x)) for x in np.linspace(0, 1, 401))
        assert gap / len(values) < 0.06, color  # Kolmogorov and Smirnov's distance, of samples of 2000
