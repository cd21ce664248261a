"""What the zoo's language models are taught: a reader of its own finds every labelled word in the text before it."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import zoo_tools  # noqa: F401 - the path of the tools

import zoo_text  # isort: skip
from zoo_text import BEGIN, END, IMAGE, PAD, UNSEEN, Lesson  # isort: skip
from zoo_world import KINDS, NUMBERS, PLACES, VOCABULARY, Scene, new_scene  # isort: skip

SEEDS = st.integers(0, 10**9)
KIND_OF = {value: kind for kind, values in KINDS.items() for value in values}
Facts = dict[str, dict[str, str]]  # place -> kind -> value


def words(ids: list[int]) -> list[str]:
    return [VOCABULARY[number] for number in ids]


def facts_of(story: list[str]) -> Facts:
    """What a story says stands where."""
    facts: Facts = {}
    place = ""
    for word in story:
        if word in PLACES:
            place = word
        elif word in KIND_OF:
            assert facts.setdefault(place, {}).setdefault(KIND_OF[word], word) == word
        else:
            assert word in (".", "nothing", "<image>"), word
    return facts


def answer(facts: Facts, question: list[str]) -> list[str]:
    match question:
        case ["how", "many", "things", "?"]:
            return [NUMBERS[len(facts)]]
        case ["is", "anything", "at", place, "?"]:
            return ["yes" if place in facts else "no"]
        case ["what", kind, "is", "at", place, "?"]:
            return [facts[place][kind]]
        case ["where", "is", value, "?"]:
            return [place for place, seen in facts.items() if value in seen.values()]
        case ["what", kind, "is", value, "?"]:
            return [word for place, seen in facts.items() if value in seen.values() for word in (place, seen[kind])]
    raise AssertionError(question)


def check_labels(lesson: Lesson) -> list[int]:
    """Labels are the tokens themselves, and none is the first; the places that have one."""
    ids, labels = lesson
    assert len(ids) == len(labels) and ids[0] == BEGIN and labels[0] == UNSEEN
    assert all(label in (UNSEEN, token) for token, label in zip(ids, labels, strict=True))
    return [i for i, label in enumerate(labels) if label != UNSEEN]


def check_talk(lesson: Lesson, seen: Facts | None = None) -> None:
    """Turns of a conversation whose first question begins with a story, and with what `seen` tells of a picture."""
    labelled = check_labels(lesson)
    text = words(lesson[0])
    assert text[:2] == ["<s>", "<q>"] and text[-1] == "</s>"
    turns = " ".join(text[2:-1]).split(" </s> <q> ")
    start = next(i for i, word in enumerate(turns[0].split()) if word in ("what", "where", "how", "is"))
    facts = facts_of(turns[0].split()[:start])
    for place, values in (seen or {}).items():
        facts.setdefault(place, {}).update(values)
    at, wanted = 2 + start, []
    for turn in [" ".join(turns[0].split()[start:]), *turns[1:]]:
        question, said = (part.split() for part in turn.split(" <a> "))
        assert said == answer(facts, question), turn
        at += len(question) + 1
        wanted += range(at, at + len(said) + 1)  # the end, too
        at += len(said) + 2
    assert labelled == wanted


def sight(scene: Scene, kind: str) -> Facts:
    return {thing.place: {kind: getattr(thing, kind)} for thing in scene}


@settings(deadline=None, max_examples=50)
@given(SEEDS)
def test_repeated(seed: int) -> None:
    ids, labels = lesson = zoo_text.repeated(Random(seed))
    count = (len(ids) - 1) // 2
    assert check_labels(lesson) == list(range(count + 2, 2 * count + 1))
    assert labels[count + 2 :] == ids[2 : count + 1]


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.sampled_from(["color", "shape letter", "letter color shape"]), st.booleans())
def test_looked_up(seed: int, kinds: str, back: bool) -> None:
    lesson = zoo_text.looked_up(Random(seed), kinds=kinds.split(), back=back)
    text, labelled = words(lesson[0]), check_labels(lesson)
    facts = facts_of(text[1 : text.index(".")])
    width = 2 if " " not in kinds else 3
    assert labelled == list(range(text.index(".") + width, len(text), width))
    for i in labelled:
        first, asked = text[i - width + 1], text[i - 1]
        if first in PLACES:
            assert text[i] == facts[first][asked if width == 3 else kinds]
        else:
            assert back and asked == ("where" if width == 3 else first)
            assert facts[text[i]][KIND_OF[first]] == first


@settings(deadline=None, max_examples=100)
@given(SEEDS)
def test_conversation(seed: int) -> None:
    check_talk(zoo_text.conversation(Random(seed)))


@settings(deadline=None, max_examples=100)
@given(SEEDS, st.sampled_from(list(KINDS)))
def test_beside_words(seed: int, kind: str) -> None:
    random = Random(seed)
    scene = new_scene(random)
    ids, labels = zoo_text.beside_words([IMAGE] * 4, scene, kind, random)
    check_talk((ids, labels), sight(scene, kind))
    story = words(ids)[: words(ids).index("<a>")]
    assert story.count("<image>") == 4
    assert not {getattr(thing, kind) for thing in scene} & set(story[:-6])  # the words tell other kinds only


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.sampled_from(list(KINDS)))
def test_talk_about_a_picture(seed: int, kind: str) -> None:
    random = Random(seed)
    scene = new_scene(random)
    check_talk(zoo_text.talk([IMAGE] * 9, scene, [kind], random, 6), sight(scene, kind))


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.sampled_from(list(KINDS)))
def test_listed(seed: int, kind: str) -> None:
    random = Random(seed)
    scene = new_scene(random)
    lesson = zoo_text.listed([IMAGE] * 9, scene, kind, random)
    text, seen = words(lesson[0]), {thing.place: getattr(thing, kind) for thing in scene}
    assert text[:12] == ["<s>", "<q>", *["<image>"] * 9, "."]
    assert check_labels(lesson) == list(range(14, len(text), 3))
    for first, asked, said in zip(text[12::3], text[13::3], text[14::3], strict=True):
        if asked == "where":
            assert seen[said] == first
        else:
            assert (asked, said) == (kind, seen.get(first, "nothing"))


@settings(deadline=None, max_examples=50)
@given(SEEDS)
def test_backwards(seed: int) -> None:
    lesson = zoo_text.backwards(Random(seed))
    text, labelled = words(lesson[0]), check_labels(lesson)
    at = text.index("<a>")
    assert text[:3] == ["<s>", "<q>", "say"] and text[at - 2 : at] == ["backwards", "?"] and text[-1] == "</s>"
    assert text[at + 1 : -1] == text[3 : at - 2][::-1]
    assert labelled == list(range(at + 1, len(text)))


@pytest.mark.parametrize("make", [zoo_text.conversation, zoo_text.backwards, zoo_text.repeated])
def test_padding_has_no_labels(make: Callable[[Random], Lesson]) -> None:
    rows = [make(Random(seed)) for seed in range(5)]
    ids, labels = zoo_text.padded(rows)
    assert ids.shape == labels.shape == (5, max(len(row) for row, _ in rows))
    for got, told, (row, label) in zip(ids.tolist(), labels.tolist(), rows, strict=True):
        behind = len(got) - len(row)
        assert got == row + [PAD] * behind
        assert told == label + [UNSEEN] * behind
    assert END in ids or make is zoo_text.repeated
