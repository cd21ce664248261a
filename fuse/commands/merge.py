"""`fuse merge`: a recipe in, a folder out."""

import time
from pathlib import Path

import click


@click.command("merge")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT if it exists (only after the new folder is complete).")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the result on stdout.")
def command(recipe: Path, out: Path, force: bool, quiet: bool, as_json: bool) -> None:
    """Run RECIPE into the folder OUT.

    OUT appears whole, or not at all with one sentence that says why.
    """
    import json

    from fuse.merge import merge
    from fuse.output import check_target
    from fuse.planner import make_plan
    from fuse.progress import byte_progress
    from fuse.recipe_yaml import load_recipe
    from fuse.sizes import counted, size_text

    plan = make_plan(load_recipe(recipe))
    check_target(plan, out, force=force)
    began = time.monotonic()
    with byte_progress(plan.bytes_written, shown=not quiet) as progress:
        merge(plan, out, force=force, progress=progress)
    seconds = time.monotonic() - began
    merged, folded = (sum(row.action == action for row in plan.rows) for action in ("merge", "fold"))
    copied = len(plan.rows) - merged - folded
    if as_json:
        click.echo(json.dumps({
            "folder": str(out), "merged": merged, "copied": copied, "folded": folded, "dropped": len(plan.drops),
            "bytes": plan.bytes_written, "seconds": round(seconds, 3), "plan": plan.digest(),
        }, indent=1))  # fmt: skip
    else:
        click.echo(
            f"{out}: {counted(merged, 'tensor')} merged, {copied} copied, "
            f"{f'{folded} folded, ' if folded else ''}{len(plan.drops)} left out; "
            f"{size_text(plan.bytes_written)} in {seconds:.1f} s"
        )
