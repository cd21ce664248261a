"""The data file of `fuse eval` and `fuse search`: JSON Lines, one question a line, read strictly.

docs/evaluation.md describes the format.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fuse.errors import FuseError, RecipeError
from fuse.evaluate.captions import words
from fuse.evaluate.json_lines import read_rows
from fuse.images import open_image
from fuse.suggest import did_you_mean

METRICS = ("exact", "vqa", "choice", "cider")
KEYS = ("image", "question", "answer", "answers", "choices", "skill", "metric", "id")
VQA_ANSWERS = 4  # with fewer, leaving one out leaves fewer than the 3 that agree in a full score
NO_SKILL = "all"


@dataclass(frozen=True)
class Question:
    """One line of a data file; docs/evaluation.md has the meaning of each key."""

    line: int
    key: str  # "id" of the line, else its number; unique in a file
    text: str
    images: tuple[Path, ...]  # in the folder of the data file where they are relative; () for text only
    answers: tuple[str, ...]  # one or more; () where a file without labels was asked for
    choices: tuple[str, ...]  # () for an open question; else every answer is one of them
    skill: str
    metric: str
    where: str = ""  # "file:line", for messages


def read_questions(file: Path, *, labelled: bool = True) -> tuple[Question, ...]:
    """The questions of a data file, in its order; no image is opened (see `check_images`).

    labelled: every line has an answer; else lines may be without, and such a question has answers ().
    Raises RecipeError at the first line that is wrong, naming file and line; MachineError when the file may not be
    read.
    """
    found: list[Question] = []
    lines: dict[str, int] = {}
    for number, row in read_rows(file):
        question = _question(file, number, row, labelled)
        if question.key in lines:
            raise RecipeError(
                f"id {question.key!r} is already that of line {lines[question.key]}", where=question.where,
                hint="a line without id has its number as id",
            )  # fmt: skip
        lines[question.key] = number
        found.append(question)
    if not found:
        raise RecipeError("holds no questions", where=file, hint="one JSON object a line: question, answer, image")
    _check_captions(found)
    return tuple(found)


def with_metric(questions: Iterable[Question], metric: str) -> tuple[Question, ...]:
    """The questions, all scored by one metric instead of their own.

    Raises RecipeError for an unknown metric, or at the first question that it does not suit.
    """
    changed = [replace(question, metric=metric) for question in questions]
    for question in changed:
        _check_metric(question)
    _check_captions(changed)
    return tuple(changed)


def check_images(questions: Iterable[Question]) -> None:
    """Open every image once.

    Raises what `fuse.images.open_image` raises, naming the first line that asks about that image.
    """
    seen: set[Path] = set()
    for question in questions:
        for path in question.images:
            if path in seen:
                continue
            seen.add(path)
            try:
                open_image(path)
            except FuseError as error:
                where = question.where or f"line {question.line}"
                raise type(error)(f"image {path}: {error.problem}", where=where, hint=error.hint) from None


def _question(file: Path, number: int, row: dict[str, Any], labelled: bool) -> Question:
    """The question of one line, all of its keys checked."""
    where = f"{file}:{number}"
    for key in row:
        if key not in KEYS:
            raise RecipeError(f"unknown key {key!r}", where=where, hint=did_you_mean(key, KEYS))
    if "question" not in row:
        raise RecipeError("question is missing", where=where)
    text = _text(row["question"], "question", where)
    images = _texts(row["image"], "image", where, one=True) if "image" in row else ()
    for image in images:
        if "://" in image or image.startswith("data:"):
            raise RecipeError(f"image {image[:60]!r} is not a path", where=where, hint="images are files on disk")
        if min(image) < " ":
            raise RecipeError(f"image {image[:60]!r} holds a control character", where=where)
    answers = _answers(row, where) if labelled or {"answer", "answers"} & set(row) else ()
    choices = _texts(row["choices"], "choices", where) if "choices" in row else ()
    _check_choices(choices, answers, where)
    skill = _text(row["skill"], "skill", where).strip() if "skill" in row else NO_SKILL
    metric = _text(row["metric"], "metric", where) if "metric" in row else _usual_metric(choices, answers)
    question = Question(
        line=number, key=_id(row.get("id", number), where), text=text, answers=answers, choices=choices, skill=skill,
        metric=metric, images=tuple(file.parent / image for image in images), where=where,
    )  # fmt: skip
    _check_metric(question)
    return question


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        hint = f'as text: "{value}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise RecipeError(f"{name} is {_kind(value)}, not text", where=where, hint=hint)
    if not value.strip():
        raise RecipeError(f"{name} is empty", where=where)
    return value


def _texts(value: Any, name: str, where: str, *, one: bool = False) -> tuple[str, ...]:
    """A list of texts; `one`: or a single text."""
    if one and not isinstance(value, list):
        return (_text(value, name, where),)
    if not isinstance(value, list):
        raise RecipeError(f"{name} is {_kind(value)}, not a list of texts", where=where)
    if not value:
        raise RecipeError(f"{name} is an empty list", where=where, hint="leave the key out" if one else "")
    return tuple(_text(item, f"{name}[{i}]", where) for i, item in enumerate(value))


def _answers(row: dict[str, Any], where: str) -> tuple[str, ...]:
    if "answer" in row and "answers" in row:
        raise RecipeError("has both answer and answers", where=where, hint="give one of them")
    if "answer" in row:
        if isinstance(row["answer"], list):
            raise RecipeError("answer is a list, not text", where=where, hint="a list goes under answers")
        return (_text(row["answer"], "answer", where),)
    if "answers" not in row:
        raise RecipeError("answer is missing", where=where, hint="answer: text, or answers: a list of texts")
    return _texts(row["answers"], "answers", where)


def _check_choices(choices: tuple[str, ...], answers: tuple[str, ...], where: str) -> None:
    if not choices:
        return
    if len(choices) == 1:
        raise RecipeError("choices has one choice only", where=where)
    for choice, times in Counter(choices).items():
        if times > 1:
            raise RecipeError(f"choice {choice!r} stands {times} times in choices", where=where)
    for answer in answers:
        if answer not in choices:
            raise RecipeError(f"answer {answer!r} is not among the choices", where=where,
                              hint=did_you_mean(answer, choices))  # fmt: skip


def _usual_metric(choices: tuple[str, ...], answers: tuple[str, ...]) -> str:
    """The metric of a line that names none."""
    if choices:
        return "choice"
    return "vqa" if len(answers) > 1 else "exact"


def _check_metric(question: Question) -> None:
    """Refuse a metric that is not known, or that the line has not got the data for."""
    metric, where = question.metric, question.where
    if metric not in METRICS:
        raise RecipeError(f"unknown metric {metric!r}", where=where, hint=did_you_mean(metric, METRICS))
    if metric == "choice" and not question.choices:
        raise RecipeError("metric 'choice' needs choices", where=where)
    if metric != "choice" and question.choices:
        raise RecipeError(f"metric {metric!r} does not look at choices", where=where, hint="leave one of them out")
    if metric == "vqa" and 1 < (count := len(question.answers)) < VQA_ANSWERS:
        raise RecipeError(
            f"VQA accuracy leaves each of the {count} answers out in turn and wants 3 others that agree", where=where,
            hint=f"give one answer, or the answers of {VQA_ANSWERS} people or more; for answers of which any is right "
            'say "metric": "exact"',
        )  # fmt: skip
    if metric == "cider":
        for answer in question.answers:
            if not words(answer):
                raise RecipeError(f"answer {answer!r} has no words for metric 'cider'", where=where)


def _check_captions(questions: Iterable[Question]) -> None:
    """CIDEr is a figure of a set on a scale of its own: refuse a set of one, and skills that mix it with accuracies."""
    captions = [question for question in questions if question.metric == "cider"]
    if len(captions) == 1:
        raise RecipeError(
            "is the only question with metric 'cider', which weighs words by how few of the questions have them",
            where=captions[0].where, hint="give at least 2",
        )  # fmt: skip
    skills = {question.skill for question in captions}
    for question in questions:
        if question.metric != "cider" and question.skill in skills:
            raise RecipeError(
                f"skill {question.skill!r} has questions with metric 'cider' and with {question.metric!r}, which have "
                "different scales", where=question.where, hint="give captions a skill of their own",
            )  # fmt: skip


def _id(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "id", where)


def _kind(value: Any) -> str:
    """What a JSON value is, with its article."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {dict: "an object", list: "a list", str: "text"}
    return names.get(type(value), f"the number {value}")
