"""`fuse search`: coefficients and options of a recipe, by what its model answers."""

import json
from pathlib import Path
from typing import Any

import click

from fuse.commands.device_option import device_option

METHODS = ("grid", "coordinate", "bayes")
OBJECTIVES = ("score", "loss", "stability", "entropy")
OVER = (
    "What to search: a path of the recipe and a range (language.weights.b=0..1) or a list "
    "(language.method=linear,ties); PATH@depth:3 a number for each of three depths, PATH@parts for attention, MLP and "
    "the rest, language.weights.* one for all members but the first. May be repeated. Without it: every weight of the "
    "language model, 0..1."
)
SUM = "Keep a sum, as language.weights=1: the first member takes what the others leave. May be repeated."
OBJECTIVE = "What is best: score or loss need right answers; stability and entropy do without."
OUT = "Folder to make, or that of a search to go on with."
HOLDOUT = "Share of the questions kept for testing start and best at the end, 0 for none.  [default: 0.3]"


@click.command("search")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Questions, as fuse eval takes them.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help=OUT)
@click.option("--over", multiple=True, metavar="PATH=VALUES", help=OVER)
@click.option("--sum", "sums", multiple=True, metavar="TABLE=TOTAL", help=SUM)
@click.option("--method", default="coordinate", show_default=True, type=click.Choice(METHODS))
@click.option("--objective", default="score", show_default=True, type=click.Choice(OBJECTIVES), help=OBJECTIVE)
@click.option("--budget", default=30, show_default=True, type=click.IntRange(1, 100_000), help="Most trials.")
@click.option("--steps", default=5, show_default=True, type=click.IntRange(2, 1000), help="Grid values of a range.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, (1 << 31) - 1))
@click.option("--holdout", type=click.FloatRange(0, 0.9), metavar="SHARE", help=HOLDOUT)
@click.option("--test", type=click.Path(path_type=Path), help="Questions for testing, instead of --holdout.")
@click.option("--max-tokens", default=32, show_default=True, type=click.IntRange(1, 8192), help="Longest answer.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1, 4096))
@device_option()
@click.option("--quiet", is_flag=True, help="No line for each trial.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON document on stdout.")
def command(
    recipe: Path, data: Path, out: Path, over: tuple[str, ...], sums: tuple[str, ...], quiet: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Search coefficients and options of RECIPE that answer the questions of --data best, without training.

    Writes best.yaml, trials.csv, search.json and plot.png into --out. Started again with the same options it goes on
    where it stopped; a larger --budget goes further.
    """
    from fuse.search.finish import Interrupted, search_into
    from fuse.search.run import Options

    chosen = Options(over=over, sum=sums, **options)
    try:
        found = search_into(recipe, data, out, chosen, say=None if quiet else _say)
    except Interrupted as stop:
        click.echo(f"fuse: {stop}", err=True)
        raise SystemExit(130) from None
    if as_json:
        click.echo(json.dumps(found.document, indent=1, ensure_ascii=False))
    else:
        _show(found)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _show(found: Any) -> None:
    """Start and best for tuning and testing, and where the best recipe is."""
    from rich.console import Console

    from fuse.errors import printable

    if found.table is not None:
        Console(highlight=False).print(found.table)
    for line in found.sentences:
        click.echo(printable(line))
