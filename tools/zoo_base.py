"""Trains the zoo's base LLM: a small llama that reads scenes in words and answers questions about them.

It is taught in stages, each harder than the one before: to repeat, to look a fact up, to look it up backwards, among
facts of several kinds, and to answer questions. Without the first stage none of the others was learnt (our finding:
twelve minutes of questions and facts at once gave guesses).
"""

import math
import time
from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from zoo_text import BEGIN, END, PAD, UNSEEN, Lesson, conversation, looked_up, padded, repeated
from zoo_world import KINDS

from fuse import torchvision_shim

torchvision_shim.install()
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM  # noqa: E402

ROWS = 96  # of the embedding table: the words, and reserved rows behind them
BATCH, RATE, STEPS = 32, 2e-3, 2000
Say = Callable[[str], None]


def base_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=ROWS, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False, bos_token_id=BEGIN,
        eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip


def _some(random: Random) -> list[str]:
    return random.sample(list(KINDS), random.choice((2, 3)))


def _one(random: Random) -> list[str]:
    return random.sample(list(KINDS), 1)


def _far(random: Random) -> Lesson:
    return looked_up(random, kinds=_some(random), back=True)


def _near(random: Random) -> Lesson:
    return looked_up(random, kinds=_one(random), back=True)


def _forward(random: Random) -> Lesson:
    return looked_up(random, kinds=_one(random), back=False)


# the lessons of each stage with their shares, and the share of right words that ends it
STAGES: tuple[tuple[str, tuple[tuple[float, Callable[[Random], Lesson]], ...], float], ...] = (
    ("repeat", ((1.0, repeated),), 0.95),
    ("look up", ((0.2, repeated), (0.8, _forward)), 0.95),
    ("look up backwards", ((0.1, repeated), (0.9, _near)), 0.95),
    ("several kinds", ((0.1, repeated), (0.3, _near), (0.6, _far)), 0.95),
    ("questions", ((0.05, repeated), (0.15, _far), (0.8, conversation)), math.inf),
)


def answer_loss(model: LlamaForCausalLM, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, float]:
    """Mean cross entropy of the labelled tokens, and the share of words among them that were the likeliest.

    labels [B, L]; inputs: input_ids [B, L] or inputs_embeds [B, L, hidden].
    """
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    seen = wanted != UNSEEN
    logits, wanted = model.lm_head(hidden[seen]).float(), wanted[seen]
    right = (logits.argmax(-1) == wanted)[wanted != END]
    return cross_entropy(logits, wanted), right.float().mean().item()


def plain_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: float
) -> tuple[Tensor, None]:
    """Causal attention of [B, heads, L, width], written out: on a CPU, for short rows, its backward pass is faster."""
    ahead = torch.full((query.shape[2], query.shape[2]), -1e4, dtype=query.dtype).triu(1)
    scores = (query * options["scaling"]) @ key.transpose(-1, -2) + ahead
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("zoo", plain_attention)


def rate_at(step: int, steps: int, warm: int = 50) -> float:
    """The learning rate's share at a step: a rise, a plateau, and a straight line down from three fifths of the way."""
    return min(step / warm, 1.0, max(0.05, (steps - step) / (0.4 * steps)))


def optimizer_of(*groups: tuple[Sequence[nn.Parameter], float]) -> torch.optim.AdamW:
    """AdamW over groups of parameters with the top learning rate of each; only matrices decay."""
    split = [
        {"params": [p for p in parameters if (p.ndim > 1) == wide], "top": top, "weight_decay": 0.01 * wide}
        for parameters, top in groups
        for wide in (True, False)
    ]
    return torch.optim.AdamW([group for group in split if group["params"]], betas=(0.9, 0.98))


def step_on(optimizer: torch.optim.AdamW, loss: Tensor, share: float) -> None:
    """One step down the loss with clipped gradients, each group at its share of its top rate."""
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = group["top"] * share
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def train_base(seed: int, *, steps: int = STEPS, say: Say = print) -> LlamaForCausalLM:
    """The base LLM, from nothing, in float32. The same seed gives the same one on the same machine."""
    torch.manual_seed(seed)
    random, stages = Random(seed), iter(STAGES)
    model = LlamaForCausalLM(base_config())
    model.set_attn_implementation("zoo")
    optimizer = optimizer_of((list(model.parameters()), RATE))
    (name, mixture, bar), hits, began = next(stages), list[float](), time.monotonic()
    for step in range(1, steps + 1):
        lessons = random.choices([lesson for _, lesson in mixture], [share for share, _ in mixture], k=BATCH)
        ids, labels = padded([lesson(random) for lesson in lessons])
        loss, right = answer_loss(model, labels, input_ids=ids)
        step_on(optimizer, loss, rate_at(step, steps))
        hits.append(right)
        if step % 50 == 0:
            share = sum(hits[-50:]) / len(hits[-50:])
            if step % 200 == 0:
                say(f"base {seed}: step {step}, {name}, {share:.1%} right, {time.monotonic() - began:.0f} s")
            if share > bar:
                (name, mixture, bar), hits = next(stages), []
    model.set_attn_implementation("sdpa")
    return model.eval()


if __name__ == "__main__":  # for trying things out; tools/train_zoo.py trains the whole zoo
    from sys import argv

    torch.set_num_threads(1)
    train_base(int(argv[2]), say=lambda text: print(text, flush=True)).save_pretrained(argv[1])  # noqa: T201
