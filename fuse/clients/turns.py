"""Conversations as evaluation harnesses hold them, answered by a loaded folder.

A turn is {"role": ..., "content": [parts]}, a part {"type": "image", "image": picture or path} or {"type": "text",
"text": ...}. A conversation of one question behind its images makes the very batch that `fuse eval` makes of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuse.ask import Answerer, has_template, processed, prompt_of
from fuse.chat import written
from fuse.errors import RecipeError
from fuse.evaluate.answering import reply
from fuse.evaluate.batches import BATCH, Row, prepare
from fuse.evaluate.likelihood import answer_tokens
from fuse.evaluate.questions import Question
from fuse.images import as_image
from fuse.model.messages import images_in

Turns = Sequence[Mapping[str, Any]]
MARK = "<image>"  # how harnesses write an image inside of a text


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a continuation: mean loss in nats a token, and whether it would say it greedily."""

    loss: float
    greedy: bool


def question_turns(text: str, images: Sequence[Any]) -> list[dict[str, Any]]:
    """One turn with images where the text has their marks, else before it.

    Raises RecipeError where the text has marks, and another number of them than there are images.
    """
    pieces = text.split(MARK)
    if len(pieces) == 1:
        return [{"role": "user", "content": [*map(_image, images), {"type": "text", "text": text}]}]
    if len(pieces) - 1 != len(images):
        raise RecipeError(f"the text has {len(pieces) - 1} marks {MARK!r}, and there are {len(images)} images")
    parts: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
    for image, piece in zip(images, pieces[1:], strict=True):
        parts += [_image(image), {"type": "text", "text": piece}]
    return [{"role": "user", "content": [part for part in parts if part["type"] == "image" or part["text"]]}]


def said(
    answerer: Answerer, conversations: Sequence[Turns], *, max_tokens: int, batch: int = BATCH
) -> list[str]:  # fmt: skip
    """The greedy answer to each conversation. Raises RecipeError for a conversation that the folder cannot read."""
    asked = {str(number): turns for number, turns in enumerate(conversations)}
    found: dict[str, str] = {}
    for some in prepare(answerer, [_question(key) for key in asked], batch=batch, read=_reader(asked)):
        found |= {one.key: one.text for one in reply(answerer, some, max_tokens=max_tokens)}
    return [found[key] for key in asked]


def likelihoods(
    answerer: Answerer, conversations: Sequence[Turns], answers: Sequence[Sequence[str]], *, batch: int = BATCH
) -> list[list[Likelihood]]:  # fmt: skip
    """Of each conversation, how likely each of its answers is.

    White space around an answer is the template's matter, not the answer's. Raises RecipeError for an answer without
    tokens, and as `said`.
    """
    asked = {str(number): turns for number, turns in enumerate(conversations)}
    questions = [_question(key, answers[int(key)]) for key in asked]
    found: dict[str, list[Likelihood]] = {}
    for some in prepare(answerer, questions, batch=batch, read=_reader(asked)):
        for question, tokens in zip(some.questions, answer_tokens(answerer, some), strict=True):
            found[question.key] = [Likelihood(-float(logs.mean()), bool(best.all())) for logs, best in tokens]
    return [found[key] for key in asked]


def _question(key: str, answers: Sequence[str] = ()) -> Question:
    choices = tuple(answer.strip() for answer in answers)
    return Question(int(key) + 1, key, "", (), (), choices, "", "exact", f"conversation {int(key) + 1}")


def _reader(asked: Mapping[str, Turns]) -> Any:
    return lambda answerer, question: read_turns(answerer, asked[question.key])


def read_turns(answerer: Answerer, turns: Turns) -> tuple[str, Row]:
    """A conversation's prompt, and what the folder's processor makes of it.

    Raises RecipeError for images that the folder does not see, for what is no still image, and for a conversation of
    several turns, or with images elsewhere than in front, where the folder has no chat template.
    """
    plain = [{"role": turn["role"], "content": _parts(turn["content"])} for turn in turns]
    pictures = [as_image(one) for one in images_in(plain)]
    if pictures and answerer.processor is None:
        raise RecipeError("the folder has no eyes, and the conversation has images", where=answerer.folder)
    prompt = _prompt(answerer, plain, len(pictures))
    return prompt, processed(answerer, prompt, pictures)


def _prompt(answerer: Answerer, turns: Turns, pictures: int) -> str:
    kinds = [part["type"] for part in turns[0]["content"]]
    alone = len(turns) == 1 and turns[0]["role"] == "user" and kinds == ["image"] * pictures + ["text"]
    if alone:
        return prompt_of(answerer, turns[0]["content"][-1]["text"], pictures)
    if not has_template(answerer):
        told = f"a conversation of {len(turns)} turns, or with images among its words, needs a chat template"
        raise RecipeError(told, where=answerer.folder, hint="one question behind its images works")
    bare = [{**turn, "content": [_bare(part) for part in turn["content"]]} for turn in turns]
    if answerer.processor is None:
        bare = [{**turn, "content": "\n".join(part["text"] for part in turn["content"])} for turn in bare]
    speaker = answerer.processor or answerer.tokenizer
    return written(
        lambda: speaker.apply_chat_template(bare, add_generation_prompt=True, tokenize=False),
        where=answerer.folder, room=4 * len(str(bare)),
    )  # fmt: skip


def _parts(content: Any) -> list[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _bare(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]}


def _image(picture: Any) -> dict[str, Any]:
    return {"type": "image", "image": picture}
