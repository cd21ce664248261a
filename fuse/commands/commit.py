"""`fuse commit`: what workers wrote, put together."""

import time
from pathlib import Path

import click


@click.command("commit")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT if it exists (only after the new folder is complete).")
@click.option("--check", is_flag=True, help="Compare the sha256 of every file, not only of those that look changed.")
@click.option("--device", default="cpu", show_default=True, help="Where the workers computed.")
@click.option("--no-sync", is_flag=True, help="Do not wait until the disk has the output.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the result on stdout.")
def command(
    recipe: Path, out: Path, force: bool, check: bool, device: str, no_sync: bool, quiet: bool, as_json: bool
) -> None:
    """Put together what the workers of `fuse merge RECIPE OUT --worker I/N` wrote.

    OUT appears whole, or not at all: where a worker has not finished, everything stays as it is.
    """
    from fuse.commands.merge import tell
    from fuse.commit import commit
    from fuse.planner import make_plan
    from fuse.progress import byte_progress
    from fuse.recipe_yaml import load_recipe

    plan, began = make_plan(load_recipe(recipe)), time.monotonic()
    with byte_progress(plan.bytes_written, shown=not quiet, name="commit") as progress:
        merged = commit(plan, out, force=force, progress=progress, device=device, sync=not no_sync, check=check)
    tell(plan, out, merged, began, as_json=as_json)
