"""Model folders in lmms-eval: `lmms-eval --model fuse --model_args pretrained=FOLDER`.

Questions are asked as `fuse eval` asks them: through the folder's own template and processor, greedily, choices by
likelihood. Any folder that `fuse ask` opens works, fused or not.
"""

# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from PIL import Image

from fuse.ask import load
from fuse.clients.turns import Turns, likelihoods, question_turns, said
from fuse.errors import RecipeError

MAX_TOKENS = 128  # where the task gives none, as `fuse ask`
GREEDY = {"temperature": 0, "do_sample": False, "num_beams": 1}  # what a task may ask for beside max_new_tokens, until
WITHOUT_MEANING = frozenset({"top_p", "top_k", "use_cache"})  # in a greedy answer


class Fuse(lmms):
    """A folder that answers tasks of a text and its images: `pretrained` the folder, `device` as in `fuse ask`."""

    is_simple = True

    def __init__(
        self, pretrained: str, device: str | None = "cpu", batch_size: int | str | None = 1,
        max_batch_size: int | None = None, **unknown: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if unknown:
            given = ", ".join(sorted(unknown))
            raise RecipeError(f"model_args has no {given}", hint="pretrained and device")
        self.batch = _batch(batch_size or 1)
        self.answerer = load(Path(pretrained), device=device or "cpu")
        self.tokenizer = self.answerer.tokenizer

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The greedy answer to each request, cut at the first of its stop words. Raises RecipeError for sampling."""
        asked = [self._asked(*request.args) for request in requests]
        found: list[str] = [""] * len(asked)
        for most in sorted({most for _, most, _ in asked}):
            mine = [number for number, one in enumerate(asked) if one[1] == most]
            texts = said(self.answerer, [asked[number][0] for number in mine], max_tokens=most, batch=self.batch)
            for number, text in zip(mine, texts, strict=True):
                found[number] = _until(text, asked[number][2])
        return [GenerationResult(text=text) for text in found]

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Of each continuation (loss, greedy): the mean loss in nats a token, and whether it is what is said.

        The loss, not the log-likelihood: lmms-eval 0.7 takes the choice with the smallest number. Its evaluator turns
        anything but a GenerationResult into text, so each pair comes in one.
        """
        groups: dict[Any, list[int]] = {}
        for number, request in enumerate(requests):
            context, _, _, doc_id, task, split = request.args
            groups.setdefault((context, doc_id, task, split), []).append(number)
        turns = [self._turns(*requests[some[0]].args) for some in groups.values()]
        answers = [[self._target(*requests[number].args) for number in some] for some in groups.values()]
        found: dict[int, tuple[float, bool]] = {}
        told = likelihoods(self.answerer, turns, answers, batch=self.batch)
        for some, values in zip(groups.values(), told, strict=True):
            found |= {number: (one.loss, one.greedy) for number, one in zip(some, values, strict=True)}
        return [GenerationResult(text=found[number]) for number in range(len(requests))]  # pyright: ignore

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        raise RecipeError(
            "tasks of several rounds are not supported", hint="tasks of generate_until or multiple_choice"
        )

    def _asked(self, *args: Any) -> tuple[Turns, int, list[str]]:
        return self._turns(*args), *_options(args[1])

    def _turns(
        self, context: str, _: Any, visuals: Callable[[Any], Any], doc_id: int, task: str, split: str
    ) -> Turns:  # fmt: skip
        shown = visuals(self.task_dict[task][split][doc_id]) or []
        return question_turns(context, [_still(one) for one in shown])

    def _target(self, _: Any, target: Any, visuals: Any, doc_id: int, task: str, split: str) -> str:
        return target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])


class FuseChat(Fuse):
    """The same for tasks that give whole conversations."""

    is_simple = False

    def _asked(self, *args: Any) -> tuple[Turns, int, list[str]]:
        _, messages, options, doc_id, task, split = args
        return [_turn(one) for one in messages(self.task_dict[task][split][doc_id])], *_options(options)


def _batch(told: int | str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", str(told)) or int(told) < 1:
        raise RecipeError(f"batch_size {told!r} is no number of questions", hint="--batch_size 4")
    return int(told)


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of lmms-eval's protocol, whose pictures stand under `url`."""
    parts = []
    for part in message["content"]:
        if part["type"] not in ("image", "text"):
            raise RecipeError(f"{part['type']} is not supported", hint="still images and text")
        parts.append(part if part["type"] == "text" else {"type": "image", "image": _still(part["url"])})
    return {"role": message["role"], "content": parts}


def _still(visual: Any) -> Any:
    if isinstance(visual, Image.Image | str | Path):
        return visual
    raise RecipeError(f"a visual is a {type(visual).__name__}", hint="PIL images and files of still images work")


def _options(given: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How many tokens, and the stop words. Raises RecipeError for what `fuse` does not do."""
    left = {key: value for key, value in given.items() if key not in WITHOUT_MEANING and value is not None}
    most, until = left.pop("max_new_tokens", MAX_TOKENS), left.pop("until", None) or []
    for key, value in left.items():
        if key not in GREEDY:
            raise RecipeError(f"generation_kwargs has no {key!r} here", hint="max_new_tokens and until")
        if value != GREEDY[key]:
            raise RecipeError(
                f"answers are greedy, and the task asks for {key} {value}", hint=f"--gen_kwargs {key}={GREEDY[key]}"
            )
    return int(most), [until] if isinstance(until, str) else list(until)


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in filter(None, stops):
        text = text.split(stop, maxsplit=1)[0]
    return text
