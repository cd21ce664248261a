"""What LMEye's second pass costs: one model with the network and without it, in turns, in one process.

    python tools/bench_lmeye.py                                    # a language model of SmolLM2-135M's size, on a CPU
    python tools/bench_lmeye.py --device cuda --dtype bfloat16 --json found.json
    python tools/bench_lmeye.py --size tiny                        # to see that it runs

Weights are random; the image goes through a CLIP ViT-B/32, and the network's text tower is that of CLIP ViT-L/14. Both
models share their weights; without the network a prompt has no slots. Times are medians, on the wall and of the
processor, which other programs on the machine disturb less.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from fuse.branches.branch import Prepared
from fuse.grafts.lmeye import LmeyeGraft
from fuse.model.config import FusedConfig
from fuse.model.fused import FusedForConditionalGeneration
from fuse.model.writing import branch_inputs

WARM_UPS = 1
PROMPTS = SLOTS = 5  # p and q of the published networks


@dataclass(frozen=True)
class Size:
    """text, tower: settings of a LLaMA and a CLIP vision tower. width: of CLIP's text tower; clip: the rest of it."""

    text: dict[str, Any]
    tower: dict[str, Any]
    width: int
    clip: dict[str, Any]


SIZES = {
    "tiny": Size(
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "vocab_size": 64},
        {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
         "patch_size": 14},
        8, {"layers": 1, "heads": 2, "intermediate": 12},
    ),
    "135m": Size(
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
         "num_key_value_heads": 3, "vocab_size": 49_160, "tie_word_embeddings": True},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "image_size": 224, "patch_size": 32},
        768, {"layers": 12, "heads": 12, "intermediate": 3072},
    ),
}  # fmt: skip


def build(size: Size, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """(with the network, without): two models over one set of weights."""
    d, side = size.text["hidden_size"], size.tower["image_size"]
    rows = side // size.tower["patch_size"]
    branch = {
        "library": "transformers", "architecture": "clip_vision_model", "preprocess": {"size": [side, side]},
        "tower": {"model_type": "clip_vision_model", **size.tower}, "layer": -1, "tokens": 1,
        "grid": {"image": [side, side], "tokens": [rows, rows]},
        "projector": {"kind": "lmeye", "config": {"width": size.width, "hidden_size": d, "tokens": 1}},
    }  # fmt: skip
    network = {
        "hidden_size": d, "width": size.width, "prompts": PROMPTS, "slots": SLOTS, "place": "question",
        "clip": {**size.clip, "activation": "quick_gelu", "eps": 1e-5},
    }  # fmt: skip
    last = size.text["vocab_size"]
    made = []
    for scale in (1.0, 0.0):
        config = FusedConfig(
            text_config={"model_type": "llama", "max_position_embeddings": 4096, **size.text}, host_type="llama",
            branches=[{"name": "clip", "kind": "encoder", "token": "<i>", "token_id": last - 2, "config": branch}],
            grafts=[{"name": "eyes", "kind": "lmeye", "config": network, "scale": scale, "image": "clip",
                     "tokens": {"imgd": 0}, "token_ids": {"imgd": last - 1}}],
        )  # fmt: skip
        torch.manual_seed(0)
        made.append(FusedForConditionalGeneration(config).to(device, dtype).eval())
    heard, silent = made
    silent.load_state_dict(heard.state_dict(), assign=True)
    silent.tie_weights()
    return heard, silent


def prompt(model: Any, side: int, words: int, slots: bool) -> dict[str, Any]:
    """An image, a question of so many words, its slots, and the first words of an answer."""
    last = model.config.text_config.vocab_size
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, last - 8, (1, words), generator=generator)
    ids[0, 1] = last - 2
    behind = torch.tensor([[last - 1] * SLOTS * slots + [5, 6]])
    prepared = Prepared({"pixel_values": torch.randn(3, side, side, generator=generator)}, (1,))
    inputs = branch_inputs([[(prepared, (1,))]], model.config.branches)
    device = model.device
    moved = {key: [one.to(device) for one in some] for key, some in inputs.items()}
    return {"input_ids": torch.cat([ids, behind], 1).to(device), **moved}


def timed(run: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds on the wall and of the processor."""
    sync = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    sync()
    wall, own = time.perf_counter(), time.process_time()
    run()
    sync()
    return time.perf_counter() - wall, time.process_time() - own


def measure(models: dict[str, Any], side: int, words: int, tokens: int, runs: int, device: str) -> dict[str, Any]:
    """Seconds of each model: `read` (image, network, first pass), `prefill` (that and the prompt), a further token."""
    passes: list[int] = []
    graft: LmeyeGraft = models["with"].grafts["eyes"]
    hook = graft.clip.register_forward_hook(lambda *_: passes.append(1))
    given = {name: prompt(model, side, words, name == "with") for name, model in models.items()}
    how: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    jobs: dict[str, Callable[[str], Any]] = {
        "read": lambda name: models[name].read(**given[name]),
        "prefill": lambda name: models[name].generate(**given[name], max_new_tokens=1, **how),
        "whole": lambda name: models[name].generate(**given[name], max_new_tokens=1 + tokens, **how),
    }
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {job: [] for job in jobs} for name in models}
    with torch.no_grad():
        for number in range(WARM_UPS + runs):
            for job, run in jobs.items():
                for name in models if number % 2 else reversed(list(models)):
                    spent = timed(lambda run=run, name=name: run(name), device)
                    if number >= WARM_UPS:
                        found[name][job].append(spent)
    hook.remove()
    if len(passes) != (WARM_UPS + runs) * len(jobs):
        raise click.ClickException(f"the network ran {len(passes)} times in {(WARM_UPS + runs) * len(jobs)} prompts")
    told: dict[str, Any] = {"words": words, "prompt": given["with"]["input_ids"].shape[1]}
    for name, by_job in found.items():
        told[name] = {}
        for at, clock in enumerate(("wall", "processor")):
            median = {job: statistics.median(spent[at] for spent in some) for job, some in by_job.items()}
            further = (median["whole"] - median["prefill"]) / tokens
            told[name][clock] = {"read": median["read"], "prefill": median["prefill"], "further_token": further}
        told[name]["all"] = by_job
    return told


def show(rows: list[dict[str, Any]], about: str) -> None:
    table = Table("question", "", "read ms", "prefill ms", "further token ms", "tokens/s", title=about)
    for row in rows:
        for clock in ("wall", "processor"):
            for name in ("without", "with"):
                t = row[name][clock]
                cells = (f"{t['read'] * 1e3:.1f}", f"{t['prefill'] * 1e3:.1f}", f"{t['further_token'] * 1e3:.2f}")
                rate = f"{1 / t['further_token']:.1f}" if t["further_token"] > 0 else "-"
                table.add_row(f"{row['words']} words, {clock}" if name == "without" else "", name, *cells, rate)
            ratio = row["with"][clock]["prefill"] / row["without"][clock]["prefill"]
            table.add_row("", "prefill with / without", "", f"{ratio:.2f}", "", "", end_section=True)
    Console(width=110).print(table)


@click.command(help=__doc__)
@click.option("--size", type=click.Choice(list(SIZES)), default="135m", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--words", default="32,128,512", show_default=True, help="Lengths of the question, with commas.")
@click.option("--tokens", default=16, show_default=True, type=click.IntRange(1), help="Tokens behind the first.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write every number there.")
def main(size: str, device: str, dtype: str, words: str, tokens: int, runs: int, file: Path | None) -> None:
    chosen = SIZES[size]
    heard, silent = build(chosen, getattr(torch, dtype), device)
    models = {"without": silent, "with": heard}
    parts = {
        "language_model": heard.language_model, "branch": heard.branches, "network": heard.grafts,
        "text_tower": heard.grafts["eyes"].clip,
    }  # fmt: skip
    sizes = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    millions = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in sizes.items())
    side = chosen.tower["image_size"]
    rows = [measure(models, side, int(n), tokens, runs, device) for n in words.split(",")]
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"cpu, {torch.get_num_threads()} threads"
    show(rows, f"{size}, {dtype}, {where}, {runs} runs; millions: {millions}")
    if file:
        told = {
            "size": size, "dtype": dtype, "where": where, "runs": runs, "tokens": tokens, "torch": torch.__version__,
            "parameters": sizes, "rows": rows,
        }  # fmt: skip
        file.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    sys.exit(main())
