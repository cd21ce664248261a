"""A recipe's model answers the questions of a search: one trial. The model stays in memory and is mixed anew."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fuse import interruption
from fuse.errors import CheckpointError, RecipeError
from fuse.evaluate import bootstrap
from fuse.evaluate.answering import reply
from fuse.evaluate.batches import Batch, prepare
from fuse.evaluate.metrics import scores
from fuse.evaluate.questions import Question
from fuse.evaluate.replies import Reply
from fuse.recipe_yaml import LoadedRecipe
from fuse.search.space import Point
from fuse.search.split import is_labelled, other_scale
from fuse.search.trials import Trial


class Examiner:
    """One model in memory, and the questions as batches for its processor."""

    def __init__(self, loaded: LoadedRecipe, *, device: str, batch: int, max_tokens: int) -> None:
        """loaded: the recipe to begin with. batch, max_tokens: as `prepare` and `reply` take them."""
        from fuse.live import Live

        self.live = Live(loaded, device=device)
        self.batch, self.max_tokens = batch, max_tokens
        self._prepared: dict[tuple[str, ...], tuple[Any, list[Batch]]] = {}

    def examine(
        self, loaded: LoadedRecipe, questions: Sequence[Question], *, number: int, point: Point | None, loss: bool,
        part: str = "tuning",
    ) -> Trial:  # fmt: skip
        """The trial of a recipe: mixed in place, asked every question, scored where all have right answers.

        A recipe that its members do not allow, or that makes numbers which are not finite, is a trial too, with the
        reason in `refused`.
        """
        began, labelled = time.monotonic(), is_labelled(questions)
        try:
            self.live.remix(loaded)
        except (RecipeError, CheckpointError) as error:
            return Trial(number, point, refused=str(error), part=part)
        try:
            replies = self._replies(questions, loss and labelled)
        except CheckpointError as error:  # the folder in its place is a temporary one
            seconds = round(time.monotonic() - began, 3)
            return Trial(number, point, refused=error.problem, seconds=seconds, part=part)
        said = [replies[question.key] for question in questions]
        lost = [one.loss for one in said if one.loss is not None]
        known = [one.entropy for one in said if one.entropy is not None]
        found = scores(questions, replies) if labelled else np.zeros(0)
        return Trial(
            number, point, answers=tuple(one.text for one in said), scores=tuple(map(float, found)),
            score=bootstrap.mean(found, skills(questions)) if labelled and not other_scale(questions) else None,
            loss=float(np.mean(lost)) if lost else None, entropy=float(np.mean(known)) if known else None,
            seconds=round(time.monotonic() - began, 3), part=part,
        )  # fmt: skip

    def _replies(self, questions: Sequence[Question], loss: bool) -> dict[str, Reply]:
        answerer, found = self.live.answerer, {}
        for batch in self._batches(answerer, questions):
            interruption.check()
            found |= {one.key: one for one in reply(answerer, batch, max_tokens=self.max_tokens, loss=loss)}
        return found

    def _batches(self, answerer: Any, questions: Sequence[Question]) -> list[Batch]:
        """The questions as batches: kept from trial to trial, and made anew for another tokenizer or processor."""
        keys = tuple(question.key for question in questions)
        reader = (answerer.tokenizer, answerer.processor)
        before, batches = self._prepared.get(keys, (None, []))
        if before is None or any(a is not b for a, b in zip(before, reader, strict=True)):
            batches = list(prepare(answerer, questions, batch=self.batch))
            self._prepared[keys] = (reader, batches)
        return batches


def skills(questions: Sequence[Question]) -> np.ndarray:
    """The skill of every question, [n] of text: the groups whose means a score is the mean of."""
    return np.array([question.skill for question in questions])
