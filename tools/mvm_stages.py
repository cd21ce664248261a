"""The two stages of MKS2 (arXiv 2311.15759) on the zoo: a memory is filled from pictures and captions, then mixed.

Stage 1, visual information storage: the memories and the image linear learn, everything else is frozen. The loss is
that of captions behind a picture plus an InfoNCE of captions against pictures: the hidden state at a caption's end,
read as text alone, and the picture's mean feature through the image linear. Stage 2, multimodal knowledge
collaboration: routers and low-rank changes of both experts learn, memories and the image linear are frozen too.

What the paper leaves open and is our choice: the temperature of the InfoNCE, the mean of the patches as the picture's
global feature (the class token of the zoo's towers was never taught anything), and whether the MLP stands beside the
memory in stage 1 or the memory alone (`place`; the paper's figure draws the memory alone).
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from zoo_base import BATCH, Say, answer_loss, optimizer_of, rate_at, step_on
from zoo_text import ANSWER, ASK, BEGIN, END, IMAGE, UNSEEN, Lesson, beside_words, conversation, ids_of, padded, talk
from zoo_tower import Sight, pictures
from zoo_world import Scene, caption

from fuse.grafts.mks2 import Mks2Graft
from fuse.grafts.slots import slots_of

TAU = 0.07  # of the InfoNCE, where CLIP's began
STEPS, MIXING_STEPS, RATE, MIXING_RATE = 2000, 800, 2e-3, 1e-3


@dataclass(frozen=True)
class Pupil:
    """A frozen language model with its eyes, and what learns in it: memories and the image linear.

    language: a llama of the zoo. tower: CLIP tower of `sight`. linear: tower features -> the language model's width.
    """

    language: Any
    tower: Any
    sight: Sight
    linear: nn.Linear
    graft: Mks2Graft

    def seen(self, random: Random, count: int) -> tuple[list[Scene], Tensor]:
        """Scenes, and the features [count, n, c] of their pictures' patches."""
        scenes, pixels = pictures(random, self.sight, count)
        with torch.no_grad():
            return scenes, self.tower(pixel_values=pixels).last_hidden_state[:, 1:]

    def embedded(self, ids: Tensor, features: Tensor) -> Tensor:
        """Prompts [B, L, d] with visual tokens at their places."""
        visual = self.linear(features)
        return self.language.get_input_embeddings()(ids).masked_scatter((ids == IMAGE)[..., None], visual)


def new_pupil(
    language: Any, tower: Any, sight: Sight, *, inner: int, place: str
) -> Pupil:  # fmt: skip
    """A pupil whose memories say nothing yet. The language model is left as it is."""
    graft = memory_of(language.config, inner, place)
    for module in (language, tower):
        module.requires_grad_(False)
    linear = nn.Linear(tower.config.hidden_size, language.config.hidden_size)
    return Pupil(language, tower, sight, linear, graft)


def memory_of(config: Any, inner: int, place: str) -> Mks2Graft:
    """Memories for every block of a language model, whose last matrices are zeros."""
    graft = Mks2Graft(
        {
            "hidden_size": config.hidden_size, "inner_size": inner, "layers": list(range(config.num_hidden_layers)),
            "activation": config.hidden_act, "gated": True, "bias": False, "norm": "host", "place": place,
            "router": {"beside": "additive", "instead": "none"}[place],
        }
    )  # fmt: skip
    for name, weight in graft.named_parameters():
        if name.endswith("down.weight"):
            nn.init.zeros_(weight)
    return graft


def with_mixture(pupil: Pupil, rank: int) -> Pupil:
    """The same pupil with routers, and with low-rank changes of both experts where rank is not 0, which say nothing.

    Every token begins with a share of a tenth for the memory (our choice): halves would break the language model first.
    """
    config = pupil.language.config
    lora = {"memory": rank, "mlp": rank, "alpha": rank, "mlp_size": config.intermediate_size, "mlp_gated": True}
    mixture = {"router": "softmax", "place": "instead", "lora": lora if rank else None}
    graft = Mks2Graft({**pupil.graft.config, **mixture})
    held = pupil.graft.state_dict()
    for name, weight in graft.named_parameters():
        with torch.no_grad():
            if name in held:
                weight.copy_(held[name])
            elif name.endswith(".down"):
                weight.normal_(std=weight.shape[1] ** -0.5)
            elif name.endswith("router.bias"):
                weight.copy_(torch.tensor([0.0, math.log(9)]))
            else:
                weight.zero_()
    return replace(pupil, graft=graft)


def captioned(scene: Scene, sight: Sight) -> Lesson:
    """A picture, what is there, and its caption for an answer."""
    told = caption(scene, sight.kind)
    begin = [BEGIN, ASK, *[IMAGE] * sight.tokens, *ids_of(told.text), ANSWER]
    words = [*ids_of(told.answer), END]
    return begin + words, [UNSEEN] * len(begin) + words


def contrast(texts: Tensor, images: Tensor) -> Tensor:
    """InfoNCE from text to image: mean over texts of -log softmax over all images of cosine / TAU. Both [B, d]."""
    scores = normalize(texts, dim=-1) @ normalize(images, dim=-1).T / TAU
    return cross_entropy(scores, torch.arange(len(texts)))


def ends_of(pupil: Pupil, scenes: Iterable[Scene]) -> Tensor:
    """[B, d], the last hidden state at the end token of each caption, read as text alone."""
    ids, _ = padded([([BEGIN, *ids_of(caption(scene, pupil.sight.kind).answer), END], []) for scene in scenes])
    hidden = pupil.language.model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[torch.arange(len(ids)), (ids == END).long().argmax(-1)]


def store(
    pupil: Pupil, seed: int, *, steps: int = STEPS, alone: bool = False, say: Say = print
) -> dict[str, float]:  # fmt: skip
    """Stage 1. alone: the image linear learns alone and the memories stay empty, for a control.

    Returns means over the last 50 steps: both losses, caption words that were likeliest, and captions that found their
    picture among the batch's.
    """
    torch.manual_seed(seed)
    random = Random(f"memory {pupil.sight.name} {seed}")

    def losses() -> tuple[Tensor, dict[str, float]]:
        scenes, features = pupil.seen(random, BATCH)
        ids, labels = padded([captioned(scene, pupil.sight) for scene in scenes])
        told, right = answer_loss(pupil.language, labels, inputs_embeds=pupil.embedded(ids, features))
        texts, images = ends_of(pupil, scenes), pupil.linear(features.mean(1))
        found = normalize(texts, dim=-1) @ normalize(images, dim=-1).T
        matched = (found.argmax(-1) == torch.arange(BATCH)).float().mean().item()
        other = contrast(texts, images)
        return told + other, {"caption": told.item(), "infonce": other.item(), "words": right, "matched": matched}

    pupil.graft.requires_grad_(not alone)
    learning = [p for p in (*pupil.graft.parameters(), *pupil.linear.parameters()) if p.requires_grad]
    return _taught(pupil, optimizer_of((learning, RATE)), losses, steps, "stage 1", say)


def mix(pupil: Pupil, seed: int, *, steps: int = MIXING_STEPS, say: Say = print) -> dict[str, float]:
    """Stage 2, on questions about pictures and about words. Returns means over the last 50 steps."""
    torch.manual_seed(seed)
    random = Random(f"mixing {pupil.sight.name} {seed}")
    learning = []
    for name, weight in pupil.graft.named_parameters():
        weight.requires_grad_("_lora." in name or ".router." in name)
        learning += [weight] if weight.requires_grad else []
    pupil.linear.requires_grad_(False)

    def losses() -> tuple[Tensor, dict[str, float]]:
        scenes, features = pupil.seen(random, BATCH // 2)
        image = [IMAGE] * pupil.sight.tokens
        rows = [_about(image, scene, pupil.sight.kind, random) for scene in scenes]
        ids, labels = padded([*rows, *(conversation(random, 4) for _ in range(BATCH // 2))])
        told, right = answer_loss(pupil.language, labels, inputs_embeds=pupil.embedded(ids, features))
        return told, {"answer": told.item(), "words": right}

    return _taught(pupil, optimizer_of((learning, MIXING_RATE)), losses, steps, "stage 2", say)


def _about(image: list[int], scene: Scene, kind: str, random: Random) -> Lesson:
    """Questions about a picture, or about a picture and words beside it."""
    return talk(image, scene, [kind], random, 4) if random.random() < 0.5 else beside_words(image, scene, kind, random)


def _taught(
    pupil: Pupil, optimizer: torch.optim.AdamW, losses: Callable[[], tuple[Tensor, dict[str, float]]], steps: int,
    name: str, say: Say,
) -> dict[str, float]:  # fmt: skip
    """Steps down the loss with the memories in their slots, which are empty again afterwards."""
    before = pupil.language.config._attn_implementation
    pupil.language.set_attn_implementation("zoo")
    slots = slots_of(pupil.language)
    pupil.graft.attach(slots)
    began, told = time.monotonic(), list[dict[str, float]]()
    try:
        for step in range(1, steps + 1):
            loss, found = losses()
            step_on(optimizer, loss, rate_at(step, steps))
            told.append(found)
            if step % 100 == 0:
                mean = {key: round(sum(one[key] for one in told[-50:]) / 50, 3) for key in found}
                say(f"{name}: step {step}, {mean}, {time.monotonic() - began:.0f} s")
    finally:
        for stack in slots.values():
            stack.remove()
        pupil.language.set_attn_implementation(before)
    last = told[-50:]
    return {key: round(sum(one[key] for one in last) / len(last), 4) for key in last[0]}
