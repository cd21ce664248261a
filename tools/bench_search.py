"""One step of `fuse search` against a merge and a load of the same recipe: in one process, one after the other.

    python tools/bench_search.py                           # two tiny members with eyes, fused: seconds
    python tools/bench_search.py --demo build/demo         # SmolLM2-135M-Instruct and two fine-tunes of it
    python tools/bench_search.py my.yaml --json my.json    # any recipe

Each method that the recipe's members allow is timed with numbers that are new in every run, so that a step computes
every merged tensor. Times are on the clock and of processors, since the clock also counts what else a machine does.
Both sides make the plan, neither imports anything, and files are in the page cache. After each run the two models are
compared: one bit that differs ends the benchmark with exit code 1. Other exit codes are `fuse`'s.
"""

import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing comes from elsewhere

import click
import torch
from rich.console import Console
from rich.table import Table

from fuse import ask, torchvision_shim
from fuse.errors import FuseError
from fuse.live import Live
from fuse.merge import merge
from fuse.methods.table import METHODS
from fuse.planner import make_plan
from fuse.recipe_edit import changed
from fuse.recipe_yaml import LoadedRecipe, load_recipe

torchvision_shim.install()
DEMO = Path(__file__).parent.parent / "recipes" / "demo" / "two_skills.yaml"
TINY = "members: {a: llava, b: llava_next}\nlanguage: {method: linear, weights: 0.5}\nvision: [a, b]\n"
FIXED = {"ties": {"density": 0.5}, "dare_linear": {"density": 0.5}, "dare_ties": {"density": 0.5}}
CLEARED = ("weights", "density", "t", "lambda", "epsilon", "gamma", "normalize", "rescale", "seed")


def tiny_recipe(folder: Path) -> LoadedRecipe:
    """A LLaVA and a LLaVA-NeXT with random weights, and the recipe that fuses them."""
    from bench_members import SIZES, write_member

    for name in ("llava", "llava_next"):
        write_member(SIZES["tiny"], name, folder / name, torch.float32, "cpu")
    (folder / "tiny.yaml").write_text(TINY)
    return load_recipe(folder / "tiny.yaml")


def demo_recipe(folder: Path) -> LoadedRecipe:
    """The recipe of `make demo`, with its members written where they are absent."""
    from demo_members import write_members

    write_members(folder)
    (folder / "two_skills.yaml").write_text(DEMO.read_text().replace("../../build/demo/", ""))
    return load_recipe(folder / "two_skills.yaml")


def methods_for(loaded: LoadedRecipe) -> list[str]:
    """The methods that take the recipe's members, with or without its base."""
    count, has_base = len(loaded.recipe.members), loaded.recipe.base is not None
    return [
        name for name, row in METHODS.items()
        if row.params.keys() & {"t", "weights"}
        and (row.base != "required" or has_base)
        and row.inputs[0] <= count <= (row.inputs[1] or count)
    ]  # fmt: skip


def step(loaded: LoadedRecipe, method: str, number: float) -> LoadedRecipe:
    """The recipe with another method and one new number: the first member's weight, or the place on the arc."""
    first, *others = loaded.recipe.members
    own = {"t": number} if "t" in METHODS[method].params else {"weights": {first: number, **dict.fromkeys(others, 0.5)}}
    values = {**dict.fromkeys(CLEARED), **FIXED.get(method, {}), **own}
    return changed(loaded, {"language.method": method, **{f"language.{key}": value for key, value in values.items()}})


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds on the clock and of processors, and what the work gave."""
    gc.collect()
    began, spent = time.perf_counter(), time.process_time()
    found = work()
    return {"clock": time.perf_counter() - began, "cpu": time.process_time() - spent}, found


def measure(live: Live, loaded: LoadedRecipe, method: str, runs: int, folder: Path) -> dict[str, Any]:
    """Seconds of each run: to plan, to remix (plan included), and to merge (plan included) and load."""
    found: dict[str, list[dict[str, float]]] = {"plan": [], "remix": [], "merge": [], "load": []}
    live.remix(step(loaded, method, 0.9))  # another method, and its first touch of memory
    for run in range(runs):
        one, out = step(loaded, method, 0.1 + 0.7 * run / runs), folder / f"{method}-{run}"
        found["plan"].append(timed(lambda one=one: make_plan(one))[0])
        seconds, rebuilt = timed(lambda one=one: live.remix(one))
        if rebuilt:
            raise RuntimeError("a change of numbers alone built the model anew")
        found["remix"].append(seconds)
        found["merge"].append(timed(lambda one=one, out=out: merge(make_plan(one), out))[0])
        seconds, fresh = timed(lambda out=out: ask.load(out))
        found["load"].append(seconds)
        compare(live.answerer.model, fresh.model, method)
        del fresh
        shutil.rmtree(out)
    told: dict[str, Any] = {"runs": found}
    for kind in ("clock", "cpu"):
        median = {what: statistics.median(run[kind] for run in all_runs) for what, all_runs in found.items()}
        whole = [a[kind] + b[kind] for a, b in zip(found["merge"], found["load"], strict=True)]
        told[kind] = {**median, "ratio": statistics.median(whole) / median["remix"]}
    return told


def compare(model: Any, fresh: Any, method: str) -> None:
    mine, theirs = model.state_dict(), fresh.state_dict()
    differ = [name for name in theirs if not torch.equal(mine[name], theirs[name])]
    if differ or mine.keys() != theirs.keys():
        raise RuntimeError(f"{method}: the remixed model is not the merged one: {differ[:1] or 'other names'}")


def show(console: Console, told: dict[str, Any]) -> None:
    title = "{recipe}: {bytes:,} bytes of {tensors} tensors, {threads} thread(s), median seconds of {runs} runs"
    heads = ("method", "seconds", "remix", "of it plan", "merge", "load", "merge + load / remix")
    table = Table(*heads, title=title.format(**told))
    for name, row in told["methods"].items():
        for kind in ("clock", "cpu"):
            seconds = [f"{row[kind][key]:.3f}" for key in ("remix", "plan", "merge", "load")]
            table.add_row(name, kind, *seconds, f"{row[kind]['ratio']:.1f}")
    console.print(table)
    console.print(f"every model bit-identical; the first one took {told['build']['clock']:.2f} s to merge and load")


@click.command()
@click.argument("recipe", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--demo", type=click.Path(file_okay=False, path_type=Path), help="The demo's members, in this folder.")
@click.option("--method", "methods", multiple=True, type=click.Choice([*METHODS]), help="Else all that are possible.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of torch; else its own choice.")
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="Write every number here.")
def main(
    recipe: Path | None, demo: Path | None, methods: tuple[str, ...], runs: int, threads: int | None,
    target: Path | None,
) -> None:  # fmt: skip
    """Measure one step of a search, beside a merge and a load of the same recipe."""
    import transformers

    if threads:
        torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            loaded = load_recipe(recipe) if recipe else demo_recipe(demo) if demo else tiny_recipe(scratch)
            build, live = timed(lambda: Live(loaded))
            rows = live.plan.rows
            told = {
                "recipe": loaded.file.name, "bytes": sum(row.nbytes for row in rows), "tensors": len(rows),
                "threads": torch.get_num_threads(), "torch": torch.__version__, "runs": runs, "build": build,
                "transformers": transformers.__version__,
                "methods": {m: measure(live, loaded, m, runs, scratch) for m in methods or methods_for(loaded)},
            }  # fmt: skip
    except FuseError as error:
        click.echo(f"bench_search: {error}", err=True)
        sys.exit(error.exit_code)
    if target:
        target.write_text(json.dumps(told, indent=1) + "\n")
    show(Console(highlight=False, width=120), told)


if __name__ == "__main__":
    main()
