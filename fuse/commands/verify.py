"""`fuse verify`: is a folder whole, and still what it was?"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import click

SOURCES = "Compare the members too, where they are: RECIPE_FOLDER is what their paths are relative to."


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--no-load", is_flag=True, help="Look at the files only; no model is loaded and run.")
@click.option("--sources", type=click.Path(path_type=Path), metavar="RECIPE_FOLDER", help=SOURCES)
@click.option("--threads", type=click.IntRange(1, 1024), help="Files or tensors read at once. [default: cores]")
@click.option("--quiet", is_flag=True, help="No progress, and nothing said of what is in order.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document with every check on stdout.")
def command(folder: Path, no_load: bool, sources: Path | None, threads: int | None, quiet: bool, as_json: bool) -> None:
    """Check FOLDER, which `fuse merge` or `fuse import` made: a line for each check, or one sentence and exit code 3.

    Looked at are the files that are there, headers and index, config.json against the tensors, the sha256 of every
    file that fuse.json records, and every number of the weights; then transformers loads the folder, and the model
    reads a short question.
    """
    import json

    from fuse.errors import CheckpointError, printable
    from fuse.progress import byte_progress
    from fuse.verify.check import verify

    def bar(total: int) -> AbstractContextManager[Callable[[int], None]]:
        return byte_progress(total, shown=not quiet, name="verify")

    told: list[dict[str, object]] = []
    failed: CheckpointError | None = None
    try:
        for name, outcome in verify(folder, load=not no_load, sources=sources, threads=threads, bar=bar):
            told.append({"check": name, "outcome": outcome.outcome, "told": outcome.told, **outcome.counts})
            if outcome.outcome != "failed" and not as_json and not quiet:
                click.echo(f"{name}: {'not checked: ' * (outcome.outcome == 'skipped')}{printable(outcome.told)}")
    except CheckpointError as error:
        failed = error
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "whole": failed is None, "checks": told}, indent=1))
    if failed is not None:
        raise failed
