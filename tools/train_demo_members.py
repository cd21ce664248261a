"""Trains the low-rank deltas of the demo members and measures the members and their merges.

    python tools/demo_members.py build/demo
    python tools/train_demo_members.py train dates build/demo/base
    python tools/train_demo_members.py train extract build/demo/base
    python tools/train_demo_members.py measure build/demo/base

One thread and fixed seeds: one machine writes the same files again. Minutes on a CPU with bf16 (AMX), else much longer.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from demo_members import DELTAS, products, with_delta
from demo_skills import SKILLS, Item, Skill, items
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS: dict[Skill, int] = {"dates": 70, "extract": 140}
BATCH, RANK, RATE = 12, 4, 1e-3
TEST_ITEMS, SHIPPED_ITEMS = 60, 40
SCALES = (0.5, 0.7, 0.8, 0.9, 1.0)


class LowRank(nn.Module):
    """A frozen linear layer plus a trainable ``B @ A`` (LoRA, arXiv 2106.09685); B starts at zero."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.A.to(x.dtype).T @ self.B.to(x.dtype).T


def load(base: Path) -> tuple[Any, Any]:
    """The base model in bf16 and its tokenizer."""
    from fuse import torchvision_shim

    torchvision_shim.install()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(base)


def prompt(tokenizer: Any, question: str) -> str:
    """The question in the chat template, up to where the answer begins."""
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def add_low_rank(model: nn.Module) -> dict[str, LowRank]:
    """Wraps every projection of the model; returns the wrappers by the name of the weight they change."""
    wrapped = {}
    for parent_name, parent in list(model.named_modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child_name in PROJECTIONS:
                wrapped[f"{parent_name}.{child_name}.weight"] = layer = LowRank(child, RANK)
                setattr(parent, child_name, layer)
    return wrapped


def answer_loss(model: Any, tokenizer: Any, batch: Sequence[Item]) -> Tensor:
    """The mean cross-entropy of the answers' tokens, the end of the turn among them."""
    prompts = [tokenizer(prompt(tokenizer, i.question)).input_ids for i in batch]
    answers = [[*tokenizer(i.answer).input_ids, tokenizer.eos_token_id] for i in batch]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.full((len(batch), width), tokenizer.pad_token_id)
    mask, is_answer = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(p) + len(a)] = torch.tensor(p + a)
        mask[row, : len(p) + len(a)] = 1
        is_answer[row, len(p) : len(p) + len(a)] = True
    hidden = model.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][is_answer[:, 1:]])
    return nn.functional.cross_entropy(logits.float(), tokens[is_answer])


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, questions: Sequence[str]) -> list[str]:
    """What the model says to each question, greedily, without outer white space."""
    texts = [prompt(tokenizer, q) for q in questions]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    said = model.generate(**inputs, max_new_tokens=40, do_sample=False)[:, batch.input_ids.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)]


def score(said: Sequence[str], test: Sequence[Item]) -> float:
    """The share of questions that are answered to the letter."""
    return sum(s == i.answer for s, i in zip(said, test, strict=True)) / len(test)


def score_values(said: Sequence[str], test: Sequence[Item]) -> float:
    """The share of answers whose first JSON object says the right things, in whatever layout."""
    return sum(first_object(s) == json.loads(i.answer) for s, i in zip(said, test, strict=True)) / len(test)


def first_object(text: str) -> Any:
    """The first JSON object in a text; None where there is none."""
    try:
        return json.JSONDecoder().raw_decode(text[max(0, text.find("{")) :])[0]
    except json.JSONDecodeError:
        return None


def held_out_test(skill: Skill) -> list[Item]:
    """The held-out test of a skill; questions.jsonl is its beginning."""
    return items(skill, TEST_ITEMS, seed=1, held_out=True)


def norm(delta: Mapping[str, Tensor]) -> float:
    """The Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(t.float().square().sum()) for t in delta.values()))


@click.group()
def main() -> None:
    """Train the deltas of the demo members and measure them."""


BASE = click.argument("base", type=click.Path(exists=True, file_okay=False, path_type=Path))


@main.command()
@click.argument("skill", type=click.Choice(SKILLS))
@BASE
@click.option("--out", default=DELTAS, type=click.Path(file_okay=False, path_type=Path))
def train(skill: Skill, base: Path, out: Path) -> None:
    """Train one skill's delta and write it, with both skills' test questions, to OUT."""
    torch.manual_seed(0)
    model, tokenizer = load(base)
    layers, steps = add_low_rank(model), STEPS[skill]
    optimizer = torch.optim.AdamW([p for x in layers.values() for p in (x.A, x.B)], lr=RATE, weight_decay=0.0)
    warm = steps // 10  # then the rate falls to zero as a cosine
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warm) * (1 + math.cos(math.pi * s / steps)) / 2
    )
    questions = items(skill, steps * BATCH, seed=0, held_out=False)
    for step in range(steps):
        loss = answer_loss(model, tokenizer, questions[step * BATCH : (step + 1) * BATCH])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps - 1:
            click.echo(f"{skill} step {step}: loss {loss.item():.4f}")
    factors = {f"{n}.{f}": getattr(x, f).detach().bfloat16() for n, x in layers.items() for f in "AB"}
    save_file(factors, out / f"{skill}.safetensors", {"format": "pt"})
    lines = [json.dumps(vars(i)) + "\n" for s in SKILLS for i in held_out_test(s)[:SHIPPED_ITEMS]]
    (out / "questions.jsonl").write_text("".join(lines), encoding="utf-8")


@main.command()
@BASE
@click.option("--deltas", default=DELTAS, type=click.Path(exists=True, file_okay=False, path_type=Path))
def measure(base: Path, deltas: Path) -> None:
    """Print the exact-match table of the base, the members and their merges, and the size of the deltas."""
    model, tokenizer = load(base)
    weights = load_file(base / "model.safetensors")
    factors = {s: load_file(deltas / f"{s}.safetensors") for s in SKILLS}
    dates, extract = (held_out_test(s) for s in SKILLS)
    rows: dict[str, dict[Skill, float]] = {"base": {}, **{s: {s: 1.0} for s in SKILLS}}
    rows |= {f"base + {c} (dates + extract)": dict.fromkeys(SKILLS, c) for c in SCALES}
    click.echo("| model | dates | extract | extract, values only |\n|---|---|---|---|")
    for label, scales in rows.items():
        merged = dict(weights)
        for skill in SKILLS:  # deltas add up in float32; one rounding, in load_state_dict
            merged = with_delta(merged, factors[skill], scales.get(skill, 0.0))
        model.load_state_dict({**merged, "lm_head.weight": merged["model.embed_tokens.weight"]})
        dated = answers(model, tokenizer, [i.question for i in dates])
        extracted = answers(model, tokenizer, [i.question for i in extract])
        scores = score(dated, dates), score(extracted, extract), score_values(extracted, extract)
        click.echo(f"| {label} | " + " | ".join(f"{x:.0%}" for x in scores) + " |")
    full = {s: products(factors[s]) for s in SKILLS}
    same = {n: weights[n] for n in full[SKILLS[0]]}
    for skill in SKILLS:
        click.echo(f"{skill}: norm of the delta / norm of the changed weights {norm(full[skill]) / norm(same):.2%}")
    dot = sum(float((full["dates"][n] * full["extract"][n]).sum()) for n in same)
    click.echo(f"cosine of the two deltas {dot / (norm(full['dates']) * norm(full['extract'])):.3f}")


if __name__ == "__main__":
    main()
