"""Scores of replies, one number a question."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fuse.errors import RecipeError
from fuse.evaluate import vqa_rules
from fuse.evaluate.captions import cider, library
from fuse.evaluate.questions import Question
from fuse.evaluate.replies import Reply

SENTENCE_ENDS = ".,;:!?"


def scores(questions: Sequence[Question], replies: Mapping[str, Reply]) -> np.ndarray:
    """The score of each question by its own metric, float64 [n], in the order of the questions.

    exact, vqa and choice lie in [0, 1], cider in [0, 10] (see `fuse.evaluate.captions`; its word weights come from
    all questions given with that metric). Raises RecipeError when a question has no answer or no reply; MachineError
    when cider is asked for and pycocoevalcap is not installed.
    """
    found = np.zeros(len(questions))
    captions: list[int] = []
    for i, question in enumerate(questions):
        if not question.answers:
            raise RecipeError("answer is missing, so there is nothing to score by", where=question.where)
        if question.key not in replies:
            raise RecipeError(f"question {question.key!r} has no reply", where=question.where)
        if question.metric == "cider":
            captions.append(i)
        else:
            found[i] = SCORES[question.metric](replies[question.key].text, question.answers)
    if captions:
        asked = [questions[i] for i in captions]
        found[captions] = cider([replies[q.key].text for q in asked], [q.answers for q in asked])
    return found


def check_metrics(questions: Iterable[Question]) -> None:
    """MachineError, before any model is asked, where a question's metric needs a library that is not installed."""
    if any(question.metric == "cider" for question in questions):
        library()


def exact(said: str, answers: Sequence[str]) -> float:
    """1 where the reply equals any of the answers after `plain` on both sides, else 0."""
    return float(plain(said) in {plain(answer) for answer in answers})


def choice(said: str, answers: Sequence[str]) -> float:
    """1 where the choice that was taken is one of the answers, letter by letter, else 0."""
    return float(said in answers)


def plain(text: str) -> str:
    """The text in Unicode form NFKC, case folded, white space single, without sentence marks at its end (our choice).

    ``" Red  Cube. "`` becomes ``"red cube"``; a text of nothing but marks keeps them.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.rstrip(SENTENCE_ENDS).rstrip() or folded


SCORES = {"exact": exact, "vqa": vqa_rules.accuracy, "choice": choice}  # cider looks at all questions at once
