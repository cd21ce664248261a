"""`fuse plan`: what a recipe will do, before it does it."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fuse.plan import Plan
    from fuse.visual_tokens import Cost

LONGEST = 100_000


class ImageSize(click.ParamType[tuple[int, int]]):
    """Width and height in pixels, as 640x480."""

    name = "WxH"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", value)
        size = (int(found[1]), int(found[2])) if found else (0, 0)
        if not all(0 < edge <= LONGEST for edge in size):
            self.fail(f"{value!r} is not a size in pixels such as 640x480", param, ctx)
        return size


@click.command("plan")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, with a row per tensor.")
@click.option("--all", "every", is_flag=True, help="List every tensor instead of folding the layers.")
@click.option("--image-size", type=ImageSize(), help="Count visual tokens of an image of this size (1024x768).")
def command(recipe: Path, as_json: bool, every: bool, image_size: tuple[int, int] | None) -> None:
    """Show what RECIPE will do to every tensor, and whether its members fit together.

    Members and what becomes of each, verdicts, licences, parts, what is left out, memory, disk and time. Reads
    configs, tokenizers and safetensors headers, no weights. Exits 2 or 3, with the reason, where `fuse merge`
    would refuse; and with --image-size where a budget does not work for such an image or its tokens fill the context,
    and where the output has no branches to count for.
    """
    import json

    from fuse.errors import RecipeError
    from fuse.plan_view import plan_json
    from fuse.planner import make_plan
    from fuse.recipe_yaml import load_recipe
    from fuse.visual_tokens import DEFAULT_SIZE, check_cost, cost_of

    plan = make_plan(load_recipe(recipe))
    cost = cost_of(plan, image_size or DEFAULT_SIZE)
    if image_size is not None:
        if cost is None or not cost.branches:
            raise RecipeError("counts the visual tokens of a fused model's branches, and this output has none",
                              where="--image-size", hint="leave it out")  # fmt: skip
        check_cost(cost)
    if as_json:
        click.echo(json.dumps(plan_json(plan, cost), indent=1))
    else:
        tell(plan, every=every, cost=cost)


def tell(plan: "Plan", *, every: bool = False, cost: "Cost | None" = None) -> None:
    """Print a plan as stdout shows it best: with colors and as wide as a terminal, else as plain lines."""
    from fuse.plan_view import plan_text

    if sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb":
        from fuse.plan_view.terminal import show_plan

        show_plan(plan, every=every, cost=cost)
    else:
        click.echo(plan_text(plan, every=every, cost=cost))
