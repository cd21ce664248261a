"""`fuse plan`: what a recipe will do, before it does it."""

from pathlib import Path

import click


@click.command("plan")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, with a row per tensor.")
@click.option("--all", "every", is_flag=True, help="List every tensor instead of folding the layers.")
def command(recipe: Path, as_json: bool, every: bool) -> None:
    """Show what RECIPE will do to every tensor, and whether its members fit together.

    Reads configs, tokenizers and safetensors headers, no weights. Exits 2 or 3, with the reason, where `fuse merge`
    would refuse.
    """
    import json

    from fuse.plan_view import plan_json, plan_text
    from fuse.planner import make_plan
    from fuse.recipe_yaml import load_recipe

    plan = make_plan(load_recipe(recipe))
    click.echo(json.dumps(plan_json(plan), indent=1) if as_json else plan_text(plan, every=every))
