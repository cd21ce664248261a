"""The split into tuning and testing: by skill, by image, by seed."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.errors import RecipeError
from fuse.evaluate.questions import Question
from fuse.search.split import is_labelled, shared_images, split


def question(line: int, skill: str = "all", image: str = "", metric: str = "exact") -> Question:
    images = tuple(Path(name) for name in image.split())
    return Question(line, str(line), "?", images, ("yes",), (), skill, metric)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=40), st.floats(0.05, 0.9), st.integers(0, 9))
def test_each_skill_gives_its_share(skills: list[str], share: float, seed: int) -> None:
    asked = [question(i, skill) for i, skill in enumerate(skills)]
    counts = Counter(skills)
    wanted = {skill: min(round(share * count), count - 1) for skill, count in counts.items()}
    if not sum(wanted.values()):
        with pytest.raises(RecipeError, match=f"^--holdout {share:g} of {len(skills)} questions leaves none"):
            split(asked, share, seed=seed)
        return
    tuning, testing = split(asked, share, seed=seed)
    assert sorted([*tuning, *testing], key=lambda q: q.line) == asked
    assert Counter(q.skill for q in testing) == Counter({k: v for k, v in wanted.items() if v})
    assert set(counts) == {q.skill for q in tuning}
    assert tuning == sorted(tuning, key=lambda q: q.line)
    assert split(asked, share, seed=seed) == (tuning, testing)


@given(st.lists(st.integers(0, 7), min_size=12, max_size=40), st.integers(0, 9))
def test_an_image_is_on_one_side(images: list[int], seed: int) -> None:
    asked = [question(i, "ab"[i % 2], f"{image}.png") for i, image in enumerate(images)]
    sizes = Counter(images)
    if max(sizes.values()) > 3 or len(sizes) < 4:
        return
    tuning, testing = split(asked, 0.5, seed=seed)
    assert tuning and testing
    assert shared_images(tuning, testing) == 0


def test_pictures_that_questions_share_keep_all_of_them_together() -> None:
    asked = [question(0, image="a b"), question(1, image="b c"), question(2, image="c"), *map(question, range(3, 9))]
    for seed in range(5):
        _, testing = split(asked, 0.4, seed=seed)
        assert len({q.line for q in testing} & {0, 1, 2}) in {0, 3}
    others = {tuple(q.line for q in split([*map(question, range(20))], 0.5, seed=seed)[1]) for seed in range(5)}
    assert len(others) == 5


def test_one_image_for_all_is_shared() -> None:
    tuning, testing = split([question(i, image="a.png") for i in range(10)], 0.3, seed=0)
    assert (len(tuning), len(testing), shared_images(tuning, testing)) == (7, 3, 1)


def test_one_caption_alone_is_refused() -> None:
    asked = [*map(question, range(8)), *(question(i, "captions", metric="cider") for i in range(8, 11))]
    with pytest.raises(RecipeError, match=r"^--holdout 0\.3 leaves a single caption for testing, and CIDEr needs 2 "):
        split(asked, 0.3, seed=0)


def test_labels() -> None:
    assert is_labelled([question(0)])
    assert not is_labelled([])
    assert not is_labelled([question(0), Question(1, "1", "?", (), (), (), "all", "exact")])
