"""Trains the zoo's members: a tower, a projector and a low-rank delta on a base whose own weights stay as they are.

A member is taught on its own picture tokens alone, never on those of two members together.
"""

import math
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from zoo_base import BATCH, Say, answer_loss, optimizer_of, rate_at, step_on
from zoo_text import IMAGE, Lesson, backwards, beside_words, listed, padded, talk
from zoo_tower import Sight, grey_only, pictures, tower_config
from zoo_world import Scene

from fuse import torchvision_shim

torchvision_shim.install()
from transformers import LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration  # noqa: E402

STEPS, EXPERT_STEPS, RANK = 1500, 600, 4
PROJECTOR_RATE, TOWER_RATE, DELTA_RATE = 2e-3, 1e-3, 7e-5


class LowRank(nn.Module):
    """A frozen linear layer plus a product of two thin matrices, 0 at first."""

    def __init__(self, inner: nn.Linear, rank: int) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Parameter(torch.randn(rank, inner.in_features) / math.sqrt(inner.in_features))
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down.T @ self.up.T


def with_low_rank(model: nn.Module, rank: int = RANK) -> dict[str, LowRank]:
    """Freeze the model and give every linear layer of its blocks a low-rank delta, by name."""
    model.requires_grad_(False)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in n}
    found = {name: LowRank(module, rank) for name, module in linear.items()}
    for name, module in found.items():
        model.set_submodule(name, module)
    return found


def fold(model: nn.Module, deltas: Mapping[str, LowRank]) -> None:
    """Add the deltas to the layers that they stand beside."""
    for name, delta in deltas.items():
        with torch.no_grad():
            delta.inner.weight.add_(delta.up @ delta.down)
        model.set_submodule(name, delta.inner)


def member_config(base: LlamaForCausalLM, sight: Sight) -> LlavaConfig:
    return LlavaConfig(
        vision_config=tower_config(sight).to_dict(), text_config=base.config.to_dict(), image_token_index=IMAGE,
        image_seq_length=sight.tokens, vision_feature_select_strategy="default", vision_feature_layer=-1,
        tie_word_embeddings=False,
    )  # fmt: skip


def train_member(
    base: LlamaForCausalLM, tower: Mapping[str, Tensor], sight: Sight, seed: int, *, steps: int = STEPS,
    say: Say = print, name: str = "",
) -> LlavaForConditionalGeneration:  # fmt: skip
    """A member that sees one kind of thing, from a base and a tower's weights; both are left as they are."""
    torch.manual_seed(seed)
    random = Random(f"member {sight.name} {seed}")
    member = LlavaForConditionalGeneration(member_config(base, sight))
    language = LlamaForCausalLM(base.config)  # to train in; the member's own parts are filled from it at the end
    language.load_state_dict(base.state_dict())
    deltas = with_low_rank(language)
    language.set_attn_implementation("zoo")
    eyes, projector = member.model.vision_tower, member.model.multi_modal_projector
    eyes.load_state_dict(tower)
    thin = [matrix for delta in deltas.values() for matrix in (delta.down, delta.up)]
    optimizer = optimizer_of(
        (list(projector.parameters()), PROJECTOR_RATE), (list(eyes.parameters()), TOWER_RATE), (thin, DELTA_RATE)
    )
    embed = language.get_input_embeddings()

    def batch() -> tuple[Tensor, Tensor]:
        if not sight.color:
            grey_only(eyes)
        scenes, seen = pictures(random, sight, BATCH)
        rows = [_lesson([IMAGE] * sight.tokens, scene, sight.kind, random) for scene in scenes]
        ids, labels = padded(rows)
        visual = projector(eyes(pixel_values=seen).last_hidden_state[:, 1:])
        return embed(ids).masked_scatter((ids == IMAGE)[..., None], visual), labels

    _train(language, optimizer, batch, steps, name or sight.name, say)
    if not sight.color:
        grey_only(eyes)
    fold(language, deltas)
    member.model.language_model.load_state_dict(language.model.state_dict())
    member.lm_head.load_state_dict(language.lm_head.state_dict())
    return member.eval()


def _lesson(image: list[int], scene: Scene, kind: str, random: Random) -> Lesson:
    """What a member is taught on one picture: to list it, to answer about it, and to answer with words beside it."""
    chance = random.random()
    if chance < 0.35:
        return listed(image, scene, kind, random)
    return talk(image, scene, [kind], random, 6) if chance < 0.6 else beside_words(image, scene, kind, random)


def train_expert(base: LlamaForCausalLM, seed: int, *, steps: int = EXPERT_STEPS, say: Say = print) -> LlamaForCausalLM:
    """The base with a skill of text alone that it lacks: to say words backwards."""
    torch.manual_seed(seed)
    random = Random(f"expert {seed}")
    expert = LlamaForCausalLM(base.config)
    expert.load_state_dict(base.state_dict())
    deltas = with_low_rank(expert)
    expert.set_attn_implementation("zoo")
    thin = [matrix for delta in deltas.values() for matrix in (delta.down, delta.up)]
    embed = expert.get_input_embeddings()

    def batch() -> tuple[Tensor, Tensor]:
        ids, labels = padded([backwards(random) for _ in range(BATCH)])
        return embed(ids), labels

    _train(expert, optimizer_of((thin, 4 * DELTA_RATE)), batch, steps, "expert", say)
    fold(expert, deltas)
    expert.set_attn_implementation("sdpa")
    return expert.eval()


def _train(
    language: LlamaForCausalLM, optimizer: torch.optim.AdamW, batch: Callable[[], tuple[Tensor, Tensor]], steps: int,
    name: str, say: Say,
) -> None:  # fmt: skip
    hits, began = list[float](), time.monotonic()
    for step in range(1, steps + 1):
        inputs, labels = batch()
        loss, right = answer_loss(language, labels, inputs_embeds=inputs)
        step_on(optimizer, loss, rate_at(step, steps))
        hits.append(right)
        if step % 100 == 0:
            say(f"{name}: step {step}, {sum(hits[-50:]) / 50:.1%} right, {time.monotonic() - began:.0f} s")


def language_of(member: LlavaForConditionalGeneration) -> LlamaForCausalLM:
    """The member's language model on its own."""
    language = LlamaForCausalLM(member.config.text_config)
    language.model.load_state_dict(member.model.language_model.state_dict())
    language.lm_head.load_state_dict(member.lm_head.state_dict())
    return language


def moved(base: Mapping[str, Tensor], tuned: LlamaForCausalLM) -> dict[str, Any]:
    """What training added to a base: `delta`, its norm over the base's, and `vector`, all of it in one row."""
    after = tuned.state_dict()
    vector = torch.cat([(after[name].float() - weight).flatten() for name, weight in base.items()])
    whole = torch.cat([weight.flatten() for weight in base.values()])
    return {"delta": round(float(vector.norm() / whole.norm()), 4), "vector": vector}
