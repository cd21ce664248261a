"""Batches of questions, as a folder's model takes them.

Every question goes through the folder's processor alone, exactly as `fuse ask` does it, and rows of like shape are laid
together: words are filled up on the left under an explicit attention mask, images are never filled up or resized for a
batch's sake. So a batch holds the same numbers as its questions one by one, whatever the class.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fuse.ask import Answerer, inputs_of, pad_of, prompt_of, speaker_of
from fuse.errors import FuseError, RecipeError
from fuse.evaluate.continuation import border_of, continuation
from fuse.evaluate.questions import Question

BATCH = 64
# One number for each token of the prompt, in dimension 1, and what stands before the prompt.
BY_TOKEN = {
    "input_ids": None, "attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0, "cross_attention_mask": 0,
}  # fmt: skip
BY_WORD = frozenset(
    {"qformer_input_ids", "qformer_attention_mask"}
)  # InstructBLIP's second reader, padded on the right
# Settings of a folder's generation that look at the whole prompt, where padding would count as words.
LOOKS_BACK = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0,
}  # fmt: skip

Row = Mapping[str, Any]
Read = Callable[[Answerer, Question], tuple[str, Row]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Questions that run together.

    rows: what the processor made of each, on the CPU. answers: for each question the token ids of its choices, or of
    its first right answer, as the model would say them. fill: the token before shorter prompts.
    """

    questions: tuple[Question, ...]
    rows: tuple[Row, ...]
    answers: tuple[tuple[tuple[int, ...], ...], ...]
    fill: int

    @property
    def inputs(self) -> dict[str, Any]:
        """What `model.generate` takes: words [B, L] padded on the left, attention_mask, and the images."""
        return joined(self.rows, self.fill)


def written(answerer: Answerer, question: Question) -> tuple[str, Row]:
    """A question's prompt, and what the folder's processor makes of it and its images."""
    prompt = prompt_of(answerer, question.text, len(question.images))
    return prompt, inputs_of(answerer, question.text, question.images)


def prepare(
    answerer: Answerer, questions: Iterable[Question], *, batch: int = BATCH, read: Read = written
) -> Iterator[Batch]:  # fmt: skip
    """The questions in batches of up to `batch` rows, each as soon as it is full; keys tell which question is which.

    read: a question's prompt and what the processor makes of it, where it is not written from its text and images.

    Questions with choices are kept apart from open ones, and so are images of different shape. A question with choices
    counts as many rows as its choices have different beginnings. Raises RecipeError for a question that the folder's
    processor refuses, or that has no tokens.
    """
    border = border_of(answerer)
    fill = pad_of(answerer.tokenizer) or 0
    looks_back = _looks_back(answerer)
    waiting: dict[Any, list[tuple[Question, Row, tuple[tuple[int, ...], ...]]]] = {}
    counts: dict[Any, int] = {}
    for question in questions:
        prompt, row = _row(answerer, question, read)
        answers = _answers(answerer, question, prompt, row, border)
        key = (bool(question.choices), _shape(row), row["input_ids"].shape[1] if looks_back else None)
        waiting.setdefault(key, []).append((question, row, answers))
        counts[key] = counts.get(key, 0) + (len(beginnings(answers)) if question.choices else 1)
        if counts[key] >= batch:
            yield _batch(waiting.pop(key), fill)
            del counts[key]
    for some in waiting.values():
        yield _batch(some, fill)


def joined(rows: Sequence[Row], fill: int) -> dict[str, Any]:
    """Rows of like shape as one batch; `fill` before shorter prompts, with attention_mask 0."""
    length = max(row["input_ids"].shape[1] for row in rows)
    inputs: dict[str, Any] = {}
    for key, first in rows[0].items():
        if isinstance(first, list):  # of a fused model, one tensor for each image; rows without images have none
            continue
        parts = [row[key] for row in rows]
        if key in BY_TOKEN:
            value = BY_TOKEN[key]
            parts = [_longer(part, length, fill if value is None else value, left=True) for part in parts]
        elif key in BY_WORD:
            most = max(part.shape[1] for part in parts)
            parts = [_longer(part, most, 0, left=False) for part in parts]
        inputs[key] = torch.cat(parts)
    for key in dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, list)):
        inputs[key] = [one for row in rows for one in row.get(key, ())]
    return inputs


def beginnings(answers: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The different beginnings that answers have before their last token: one row of a batch tells of all that share
    one."""
    return list(dict.fromkeys(ids[:-1] for ids in answers))


def _longer(part: torch.Tensor, length: int, value: int, *, left: bool) -> torch.Tensor:
    """[1, L, ...] filled up with a value to [1, length, ...]."""
    gap = length - part.shape[1]
    if gap == 0:
        return part
    filled = part.new_full((part.shape[0], gap, *part.shape[2:]), value)
    return torch.cat([filled, part] if left else [part, filled], 1)


def _row(answerer: Answerer, question: Question, read: Read) -> tuple[str, Row]:
    """The prompt of one question, and what the processor makes of it."""
    try:
        prompt, made = read(answerer, question)
    except FuseError as error:
        raise type(error)(f"{answerer.folder}: {error.problem}", where=question.where, hint=error.hint) from None
    row = dict(made)
    row.pop("labels", None)
    if row["input_ids"].shape[1] == 0:
        raise RecipeError(f"the question has no tokens for {answerer.folder}", where=question.where)
    row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
    return prompt, row


def _answers(
    answerer: Answerer, question: Question, prompt: str, row: Row, border: str | None
) -> tuple[tuple[int, ...], ...]:  # fmt: skip
    read = row["input_ids"][0].tolist()
    asked = question.choices or question.answers[:1]
    said = tuple(continuation(answerer, prompt, read, border, answer) for answer in asked)
    for answer, ids in zip(asked, said, strict=True):
        if question.choices and not ids:
            raise RecipeError(f"choice {answer!r} has no tokens for {answerer.folder}", where=question.where)
    return said


def _shape(row: Row) -> tuple[Any, ...]:
    """What rows of one batch must have in common; rows of fused models go together whatever they hold."""
    return tuple(
        (key, value.shape[1:] if key not in BY_TOKEN and key not in BY_WORD else value.shape[2:], value.dtype)
        for key, value in sorted(row.items())
        if not isinstance(value, list)
    )


def _looks_back(answerer: Answerer) -> bool:
    config = speaker_of(answerer.model).generation_config
    return any(getattr(config, name, None) not in (None, default) for name, default in LOOKS_BACK.items())


def _batch(some: list[tuple[Question, Row, tuple[tuple[int, ...], ...]]], fill: int) -> Batch:
    questions, rows, answers = zip(*some, strict=True)
    return Batch(questions, rows, answers, fill)
