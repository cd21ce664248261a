"""Conversations of harnesses, answered as `fuse eval` answers questions."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fuse.clients.turns import likelihoods, question_turns, read_turns, said
from fuse.errors import RecipeError
from fuse.evaluate.answering import reply
from fuse.evaluate.batches import prepare
from fuse.evaluate.likelihood import answer_logs
from tests.eval_folders import answerer, questions

KINDS = ["fused: prefix host", "fused: M-RoPE guest", "llava", "gpt2"]
CHOICES = ("w6 w7", "w9", "w6")


def turns_of(question: Any) -> list[dict[str, Any]]:
    return question_turns(question.text, [Image.open(path) for path in question.images])


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_fuse_eval(kind: str, tmp_path: Path) -> None:
    one, asked = answerer(kind), questions(kind, tmp_path, 5)
    wanted = {r.key: r.text for some in prepare(one, asked) for r in reply(one, some, max_tokens=4)}
    assert said(one, [turns_of(question) for question in asked], max_tokens=4, batch=2) == [
        wanted[question.key] for question in asked
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_fuse_eval(kind: str, tmp_path: Path) -> None:
    one, asked = answerer(kind), questions(kind, tmp_path, 3, CHOICES)
    wanted = {}
    for some in prepare(one, asked):
        for question, logs in zip(some.questions, answer_logs(one, some), strict=True):
            wanted[question.key] = [-float(log.mean()) for log in logs]
    found = likelihoods(one, [turns_of(question) for question in asked], [[f" {c}" for c in CHOICES]] * 3)
    for question, values in zip(asked, found, strict=True):
        assert [value.loss for value in values] == pytest.approx(wanted[question.key], abs=1e-5)


def test_what_is_said_is_greedy() -> None:
    one = answerer("llava")
    turns = question_turns("w5 w6", [])
    (word,) = said(one, [turns], max_tokens=1)
    other = next(f"w{i}" for i in range(5, 20) if f"w{i}" != word)
    ((first, second),) = likelihoods(one, [turns], [[word, other]])
    assert (first.greedy, second.greedy) == (True, False)
    assert first.loss < second.loss


def test_images_stand_where_the_text_has_marks(tmp_path: Path) -> None:
    (question,) = [q for q in questions("llava", tmp_path, 3) if len(q.images) == 2]
    one, images = answerer("llava"), [Image.open(path) for path in question.images]
    turns = question_turns("w5 <image> w6 <image>", images)
    assert [part["type"] for part in turns[0]["content"]] == ["text", "image", "text", "image"]
    prompt, row = read_turns(one, turns)
    at = prompt.index("w5"), prompt.index("<image>"), prompt.index("w6"), prompt.rindex("<image>")
    assert at == tuple(sorted(at))
    assert len(row["pixel_values"]) == 2
    with pytest.raises(RecipeError) as told:
        question_turns("<image> w5", images)
    assert str(told.value) == "the text has 1 marks '<image>', and there are 2 images"


def test_several_turns_need_a_template() -> None:
    several = [
        {"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}, {"role": "user", "content": "w7"}
    ]  # fmt: skip
    prompt, _ = read_turns(answerer("llava"), several)
    assert prompt.index("w5") < prompt.index("w6") < prompt.index("w7")
    with pytest.raises(RecipeError) as told:
        read_turns(answerer("gpt2"), several)
    why = "a conversation of 3 turns, or with images among its words, needs a chat template"
    assert (told.value.problem, told.value.hint) == (why, "one question behind its images works")


def test_a_folder_without_eyes_is_shown_nothing() -> None:
    with pytest.raises(RecipeError) as told:
        read_turns(answerer("gpt2"), question_turns("w5", [Image.new("RGB", (8, 8))]))
    assert told.value.problem == "the folder has no eyes, and the conversation has images"
