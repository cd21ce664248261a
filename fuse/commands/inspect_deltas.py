"""`fuse inspect deltas`: the task vectors of a recipe, before they are merged."""

from pathlib import Path

import click

from fuse.commands.report_option import report_option, write

TOP = "Strongest directions of each matrix that are compared."


@click.command("deltas")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--top", default=8, show_default=True, type=click.IntRange(1, 256), help=TOP)
@click.option("--quiet", is_flag=True, help="No progress.")
@report_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, down to every tensor.")
def command(recipe: Path, top: int, quiet: bool, report: Path | None, as_json: bool) -> None:
    """Measure how the task vectors of RECIPE's members lie to each other.

    Lengths, angles, signs and strongest directions, by layer and by type of module, and what they say of the merge.
    Reads the weights that the recipe merges, once, and no images. The recipe needs a base.
    """
    import json

    from rich.console import Console

    from fuse.align.deltas.measure import bytes_of, measure
    from fuse.align.deltas.plan import delta_plan
    from fuse.align.deltas.table import to_rich
    from fuse.progress import byte_progress
    from fuse.recipe_yaml import load_recipe

    plan = delta_plan(load_recipe(recipe))
    with byte_progress(bytes_of(plan), shown=not quiet, name="deltas") as progress:
        document = measure(plan, top=top, progress=progress)
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        Console(highlight=False).print(to_rich(document))
    write(document, report, quiet=as_json)
