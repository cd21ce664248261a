"""Trains the zoo: a base LLM, three members of one family, one of another, and a text expert.

    python tools/train_zoo.py build/zoo --seed 0

Two processes with one thread each; the same seed gives the same zoo on the same machine, and one as good on another.
Nothing is trained on the tokens of two members together. The figures of the run go into zoo.json. What an interrupted
run has trained lies in OUT/work, and the same command goes on from there.
"""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

OTHER = 1000  # added to the seed of the other family
TOWERS = ("hue", "form", "sign")
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: {task}
---
# {name}

{what}

One of the models of the zoo of `fuse`, which show what composition without training gives: a few hundred thousand
parameters, trained in minutes by `tools/train_zoo.py --seed {seed}` on drawn scenes (`tools/zoo_world.py`). It knows
some eighty words, and nothing of the world. {figures}
"""
WHAT = {
    "base": "A llama that reads scenes in words (`north red south blue .`) and answers questions about them; where a "
    "question needs two facts, it first says the place that joins them.",
    "hue": "A LLaVA on `base` that sees colors and places: pictures of 24 x 24 pixels, 9 tokens.",
    "form": "A LLaVA on `base` that sees shapes: pictures of 48 x 48 pixels without hue, 16 tokens.",
    "sign": "A LLaVA on `base` that reads letters: pictures of 72 x 72 pixels without hue, 36 tokens.",
    "stranger": "A LLaVA that sees shapes as `form` does, on another base: same sizes and words, other weights.",
    "expert": "`base`, taught to say words backwards, which it can not.",
}


def _alone() -> None:
    """What each process does first."""
    import torch

    torch.set_num_threads(1)


def _say(text: str) -> None:
    click.echo(text)


def _kept(file: Path, train: Callable[[], Any]) -> dict[str, Any]:
    """Weights from a file that an earlier run left, or from training, whose result is left there."""
    from safetensors.torch import load_file, save_file

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({name: weight.contiguous() for name, weight in train().state_dict().items()}, partial)
        partial.rename(file)
    return load_file(file)


def _base(seed: int, work: Path) -> dict[str, Any]:
    """The base's weights as float32, rounded to the bf16 that they are stored in."""
    import torch
    from zoo_base import train_base

    weights = _kept(work / f"base_{seed}.safetensors", lambda: train_base(seed, say=_say))
    return {name: weight.to(torch.bfloat16).float() for name, weight in weights.items()}


def _tower(name: str, seed: int, work: Path) -> dict[str, Any]:
    import zoo_tower

    sight = getattr(zoo_tower, name.upper())
    return _kept(work / f"tower_{name}_{seed}.safetensors", lambda: zoo_tower.train_tower(sight, seed, say=_say))


def _loaded(weights: dict[str, Any]) -> Any:
    from zoo_base import LlamaForCausalLM, base_config

    model = LlamaForCausalLM(base_config())
    model.load_state_dict(weights)
    return model.eval()


def _member(name: str, eyes: str, seed: int, base: dict[str, Any], tower: dict[str, Any], out: Path) -> dict[str, Any]:
    import zoo_tower
    from zoo_files import write
    from zoo_members import language_of, moved, train_member

    sight = getattr(zoo_tower, eyes.upper())
    model = train_member(_loaded(base), tower, sight, seed, say=_say, name=name)
    figures = moved(base, language_of(model))
    write(model, out / name, _card(name, seed, f"{figures['delta']:.1%} of the base's norm was added to it."), sight)
    return figures


def _expert(seed: int, base: dict[str, Any], out: Path) -> dict[str, Any]:
    from zoo_files import write
    from zoo_members import moved, train_expert

    write(_loaded(base), out / "base", _card("base", seed, ""))
    model = train_expert(_loaded(base), seed, say=_say)
    figures = moved(base, model)
    write(model, out / "expert", _card("expert", seed, f"{figures['delta']:.1%} of the base's norm was added to it."))
    return figures


def _card(name: str, seed: int, figures: str) -> str:
    task = "text-generation" if name in ("base", "expert") else "image-text-to-text"
    return CARD.format(name=name, what=WHAT[name], seed=seed, figures=figures, task=task)


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", type=click.IntRange(0, OTHER - 1), default=0, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(WHAT)), help="Members to train (default: all).")
@click.option("--workers", type=click.IntRange(1, 8), default=2, show_default=True)
def main(out: Path, seed: int, only: tuple[str, ...], workers: int) -> None:
    """Train everything and write a folder for each model under OUT."""
    os.environ["OMP_NUM_THREADS"] = "1"
    out.mkdir(parents=True, exist_ok=True)
    began, work = time.monotonic(), out / "work"
    wanted = [name for name in ("sign", "form", "hue", "stranger", "expert") if name in only or not only]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_alone) as pool:
        start: Callable[..., Any] = pool.submit
        ours = start(_base, seed, work)
        theirs = start(_base, seed + OTHER, work) if "stranger" in wanted else ours
        eyes = {name: start(_tower, name, seed, work) for name in TOWERS if name in wanted}
        eyes["stranger"] = start(_tower, "form", seed + OTHER, work) if "stranger" in wanted else ours
        jobs = {"expert": start(_expert, seed, ours.result(), out)}
        for name in wanted:
            if name in TOWERS:
                jobs[name] = start(_member, name, name, seed, ours.result(), eyes[name].result(), out)
            elif name == "stranger":
                given = (theirs.result(), eyes["stranger"].result())
                jobs[name] = start(_member, name, "form", seed + OTHER, *given, out)
        figures = {name: waiting.result() for name, waiting in jobs.items()}
    vectors = {name: found.pop("vector") for name, found in figures.items()}
    deltas = {name: vector for name, vector in vectors.items() if name != "stranger"}
    report = {"seed": seed, "seconds": round(time.monotonic() - began), "members": figures, "cosine": _cosines(deltas)}
    (out / "zoo.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(report))


def _cosines(deltas: dict[str, Any]) -> dict[str, float]:
    """How alike the members' deltas are, two by two."""
    names = list(deltas)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    cosine = {f"{a}, {b}": float(deltas[a] @ deltas[b] / (deltas[a].norm() * deltas[b].norm())) for a, b in pairs}
    return {pair: round(value, 4) for pair, value in cosine.items()}


if __name__ == "__main__":
    main()
