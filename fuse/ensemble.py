"""Output ensembling, for comparison: several models answer together, token by token.

The control that VisionFuse's reviewers asked for: how much of a gain comes from several language models, and how much
from several encoders. Each member sees its own prompt and images in its own way and keeps its own KV cache; before each
token their next-token distributions are averaged, and the likeliest token is given to all. How is our choice:

- `mean: probability` (the default) averages probabilities, `log` averages log-probabilities (a normalised geometric
  mean, where every member has a veto). Weights are scaled to sum to 1; a member with weight 0 is not run.
- A member's own logits processors (`repetition_penalty`, `suppress_tokens` of its generation config) come first.
- Tokens that not all members have in common can not be said; each distribution is taken over the common ones.
- The answer ends at the end token of any member.

Every member runs its own `generate` in a thread, so that whatever its class needs (M-RoPE positions, prefix masks, an
encoder) is done by its class; the threads meet before each token.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Event
from typing import Any, Literal

import torch
from torch import Tensor

from fuse.ask import Answerer, inputs_of, pad_of
from fuse.errors import CheckpointError, RecipeError
from fuse.fusable import REFUSED
from fuse.team import made, team

Mean = Literal["probability", "log"]
ALONE = "leave it out; a recipe with `output: {model: fuse}` makes a folder that answers alone"


def ensemble_ask(
    answerers: Sequence[Answerer], question: str, images: tuple[Path, ...] = (),
    weights: Sequence[float] | None = None, max_tokens: int = 128, say: Callable[[str], None] | None = None, *,
    mean: Mean = "probability",
) -> str:  # fmt: skip
    """The greedy answer of several models together; `say` gets the words as they come.

    weights: one for each answerer, >= 0 and not all 0; equal ones where left out.

    Raises RecipeError for wrong weights, fewer than two models, images for a model that does not see;
    CheckpointError when the members' vocabularies differ.
    """
    parts = scaled(weights, len(answerers))
    answerers = [answerer for answerer, part in zip(answerers, parts, strict=True) if part]
    allowed = common_tokens([answerer.tokenizer for answerer in answerers], [a.folder for a in answerers])
    stop = common_ends(answerers, allowed)
    inputs = [inputs_of(answerer, question, images).to(answerer.model.device) for answerer in answerers]
    for answerer, given in zip(answerers, inputs, strict=True):
        if given["input_ids"].shape[1] == 0:
            raise RecipeError(f"the question {question!r} has no tokens", where=answerer.folder)
    speaker = answerers[0].tokenizer
    streamer = answerers[0].streamer(say, prompt=False)
    answer = generate(
        [a.model for a in answerers], inputs, weights=[part for part in parts if part], mean=mean, allowed=allowed,
        stop=stop, max_tokens=max_tokens, pads=[pad_of(a.tokenizer) for a in answerers],
        heard=(lambda token: streamer.put(torch.tensor([token]))) if streamer else None,
    )  # fmt: skip
    if streamer:
        streamer.end()
    return speaker.decode(answer, skip_special_tokens=True).strip()


def ask_members(
    recipe: Path, question: str, images: tuple[Path, ...] = (), *, max_tokens: int = 128, device: str = "cpu",
    say: Callable[[str], None] | None = None,
) -> str:  # fmt: skip
    """The answer of a recipe's members together, each member with its number under `language: weights`.

    A member without a number there is left out; all are equal where the weights are not numbers by member.
    Raises RecipeError for a broken recipe and for a member that only its authors' code loads, and as `ensemble_ask` and
    `fuse.ask.load` do.
    """
    from fuse.ask import load
    from fuse.checkpoint import fetch
    from fuse.host import open_named
    from fuse.recipe_yaml import load_recipe

    loaded = load_recipe(recipe)
    if loaded.recipe.grafts:
        told = "an ensemble asks the members as they are, and this recipe has grafts"
        raise loaded.error(("grafts",), told, "merge it first and ask the folder, or leave the grafts out")
    members = [open_named(loaded, ("members", name), name) for name in loaded.recipe.members]
    for member in members:
        if not member.family.native:
            raise loaded.error(
                ("members", member.name),
                f"an ensemble needs members that transformers loads, and {member.name} has the original layout of "
                f"{member.family.model_type}", REFUSED.get(member.family.model_type, ALONE),
            )  # fmt: skip
        if member.adapter:
            told = f"an ensemble loads members as they lie on the disk, and {member.name} is a base with an adapter"
            raise loaded.error(("members", member.name), told, "merge it into a folder first")
    given = loaded.recipe.language.weights
    numbers = given if isinstance(given, dict) and all(isinstance(v, float | int) for v in given.values()) else {}
    weights = [float(numbers.get(member.name, 0.0 if numbers else 1.0)) for member in members]  # pyright: ignore
    for member in members:
        fetch(member.checkpoint)
    answerers = [load(member.folder, device=device) for member in members]
    return ensemble_ask(answerers, question, images, weights, max_tokens, say)


def generate(
    models: Sequence[Any], inputs: Sequence[Mapping[str, Any]], *, weights: Sequence[float], mean: Mean,
    allowed: Sequence[int], stop: Set[int], max_tokens: int, pads: Sequence[int | None],
    heard: Callable[[int], None] | None = None,
) -> list[int]:  # fmt: skip
    """The token ids of one answer, each the likeliest of the averaged distribution; the end token last, where it came.

    inputs: what each model's `generate` takes, batch 1. weights: sum 1. allowed: token ids that may be said, ascending.
    stop: token ids that end the answer. heard: called with each token as it is chosen.
    """
    from transformers import LogitsProcessorList

    council = _Council(weights, mean, allowed, stop, max_tokens, heard)

    def speak(seat: int) -> None:
        try:
            models[seat].generate(
                **inputs[seat], max_new_tokens=max_tokens, do_sample=False, num_beams=1, pad_token_id=pads[seat],
                eos_token_id=sorted(stop) or None, logits_processor=LogitsProcessorList([council.seat(seat)]),
            )  # fmt: skip
        except BrokenBarrierError:
            pass  # another member failed; its error is the one that counts
        finally:
            council.leave()

    with team(len(models), unused := Event()) as threads:
        try:
            made({seat: threads.submit(speak, seat) for seat in range(len(models))}, unused)
        except BaseException:
            council.barrier.abort()  # Ctrl-C here must not leave the members waiting for each other
            raise
    return council.chosen


def average(logits: Sequence[Tensor], weights: Sequence[float], mean: Mean) -> Tensor:
    """The logarithm of the weighted mean of softmax(logits), up to a constant: float64 [V] on the CPU.

    logits: one [V] for each member. mean: of probabilities, or of log-probabilities.
    """
    logs = torch.stack([logit.to("cpu", torch.float64).log_softmax(0) for logit in logits])
    parts = torch.tensor(weights, dtype=torch.float64)[:, None]
    return (logs * parts).sum(0) if mean == "log" else (logs + parts.log()).logsumexp(0)


class _Council:
    """Where the members' threads meet: the last to arrive chooses the token for all."""

    def __init__(
        self, weights: Sequence[float], mean: Mean, allowed: Sequence[int], stop: Set[int], max_tokens: int,
        heard: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.weights: Sequence[float] = weights
        self.mean: Mean = mean
        self.stop, self.max_tokens, self.heard = stop, max_tokens, heard
        self.allowed = torch.tensor(allowed)
        self.scores: list[Tensor] = [torch.empty(0)] * len(weights)
        self.chosen: list[int] = []
        self.over = False
        self.barrier = Barrier(len(weights), action=self._choose)

    def _choose(self) -> None:
        allowed = self.allowed[self.allowed < min(map(len, self.scores))]  # a tokenizer may know more than a model has
        spoken = average([score[allowed] for score in self.scores], self.weights, self.mean)
        token = int(allowed[int((spoken == spoken.max()).nonzero()[0])])  # of equals, the lowest id
        self.chosen.append(token)
        self.over = token in self.stop or len(self.chosen) >= self.max_tokens
        if self.heard:
            self.heard(token)

    def seat(self, number: int) -> Callable[[Tensor, Tensor], Tensor]:
        """A logits processor for one member: it hands in its scores [1, V] and gets back the common choice."""

        def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
            # transformers may run one step more than it needs before it looks whether the answer has ended
            if not self.over:
                self.scores[number] = scores[0].to("cpu")
                self.barrier.wait()
            choice = torch.tensor([self.chosen[-1]], device=scores.device)
            return torch.full_like(scores, -torch.inf).index_fill_(1, choice, 0)

        return processor

    def leave(self) -> None:
        """A member that stops before the answer has ended must not leave the others waiting."""
        if not self.over:
            self.barrier.abort()


def scaled(weights: Sequence[float] | None, members: int) -> list[float]:
    """One weight for each member, scaled to sum to 1; RecipeError where they do not allow that."""
    if members < 2:
        raise RecipeError("an ensemble needs at least two models", hint="fuse ask answers with one")
    given = [1.0] * members if weights is None else [float(weight) for weight in weights]
    if len(given) != members:
        raise RecipeError(f"{len(given)} weights for {members} models")
    if not all(0 <= weight < float("inf") for weight in given) or not any(given):
        raise RecipeError(f"weights {given} must be finite, at least 0 and not all 0")
    return [weight / sum(given) for weight in given]


def common_tokens(tokenizers: Sequence[Any], folders: Sequence[Path]) -> list[int]:
    """The ids that mean the same token to all members, ascending.

    Members may differ in added tokens (image placeholders, tile markers); those are left out. An ordinary token that
    differs is a CheckpointError: such models do not speak of the same things.
    """
    first, *others = [{row: token for token, row in tokenizer.get_vocab().items()} for tokenizer in tokenizers]
    common = set(first)
    for other, tokenizer, folder in zip(others, tokenizers[1:], folders[1:], strict=True):
        added = {*getattr(tokenizers[0], "added_tokens_decoder", {}), *getattr(tokenizer, "added_tokens_decoder", {})}
        differing = {row for row in first.keys() | other.keys() if first.get(row) != other.get(row)}
        if found := sorted(differing - added):
            here, there = (repr(table[found[0]]) if found[0] in table else "nothing" for table in (other, first))
            raise CheckpointError(
                f"its tokenizer differs from that of {folders[0]}: token {found[0]} is {here} here and {there} there",
                where=folder, hint="an ensemble needs members with the same vocabulary",
            )  # fmt: skip
        common -= differing
    return sorted(common)


def common_ends(answerers: Sequence[Answerer], allowed: Sequence[int]) -> set[int]:
    """The end tokens of all members; CheckpointError for one that ends its answers with a token that others lack."""
    ends: set[int] = set()
    for answerer in answerers:
        given = answerer.model.generation_config.eos_token_id
        own = {answerer.tokenizer.eos_token_id, *(given if isinstance(given, list | tuple) else [given])} - {None}
        if own and not own & set(allowed):
            token = answerer.tokenizer.convert_ids_to_tokens(min(own))
            raise CheckpointError(
                f"it ends its answers with {token!r}, which other members do not have", where=answerer.folder,
                hint="an ensemble needs members with the same vocabulary",
            )  # fmt: skip
        ends |= own & set(allowed)
    return ends
