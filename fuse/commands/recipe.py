"""`fuse recipe new`: a recipe by a few questions."""

import os
from pathlib import Path

import click

MEMBER = "A member as NAME=PATH or PATH: a folder, hub id or store address. May be repeated."
WEIGHT = "A member's weight as NAME=NUMBER; may be repeated."
GRAFT = "A graft's folder; may be repeated."
WORDS = ("want", "base", "method", "t", "density", "eyes", "encoder", "encoder-name", "layer", "projector", "dtype")


@click.group("recipe")
def command() -> None:
    """Work with recipes."""


@command.command("new", short_help="Write a recipe by answering a few questions.")
@click.argument("out", type=click.Path(path_type=Path), default=Path("recipe.yaml"), required=False)
@click.option("--want", help="fuse, merge, expert, encoder or graft.")
@click.option("--member", multiple=True, metavar="NAME=PATH", help=MEMBER)
@click.option("--base", metavar="PATH", help="The pretrained LLM that the members share; '' for none.")
@click.option("--method", help="How the language models are mixed.")
@click.option("--weight", multiple=True, metavar="NAME=NUMBER", help=WEIGHT)
@click.option("--t", metavar="NUMBER", help="slerp: 0 is the first member, 1 the second.")
@click.option("--density", metavar="NUMBER", help="The share of task vectors that is kept.")
@click.option("--eyes", metavar="NAME", help="Whose encoder is kept; merge mixes them.")
@click.option("--encoder", metavar="PATH", help="An encoder's folder or hub id.")
@click.option("--encoder-name", metavar="NAME", help="What the encoder is called.")
@click.option("--layer", metavar="NUMBER", help="The encoder's layer that is read, from its end.")
@click.option("--projector", metavar="PATH", help="The projector's file or folder.")
@click.option("--graft", multiple=True, metavar="PATH", help=GRAFT)
@click.option("--dtype", help="bfloat16, float16, float32, or same for the host's own.")
@click.option("--yes", is_flag=True, help="Take defaults for what no option answers.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def new(out: Path, member: tuple[str, ...], weight: tuple[str, ...], graft: tuple[str, ...], yes: bool, force: bool,
        **words: str | None) -> None:  # fmt: skip
    """Ask a few questions and write OUT (recipe.yaml), a recipe that says at every line what it means.

    Members on this disk are opened at once, so that what does not fit together is told while it is asked. Options
    answer questions beforehand, and lines of a pipe answer them as well as keys do. At the end stands what `fuse plan`
    says of the recipe. Beside it lies recipe.schema.json, with which editors complete and check it.

    Example: fuse recipe new --want fuse --member hue --member form --base base --yes
    """
    from fuse.commands.plan import tell
    from fuse.errors import RecipeError
    from fuse.planner import make_plan
    from fuse.recipe_new.dialogue import Dialogue
    from fuse.recipe_new.questions import ask_everything
    from fuse.recipe_new.write import SCHEMA, schema_beside, text_of, write
    from fuse.recipe_yaml import load_recipe
    from fuse.schema import schema_text
    from fuse.visual_tokens import DEFAULT_SIZE, cost_of

    given = {key: [value] for key in WORDS if (value := words[key.replace("-", "_")]) is not None}
    dialogue = Dialogue({**given, "member": member, "weight": weight, "graft": graft}, yes=yes)
    _check(out)
    asks = dialogue.typed and not yes
    if os.path.lexists(out) and not force and not (asks and click.confirm(f"{out} exists; replace it?", err=True)):
        raise RecipeError("exists", where=out, hint="--force replaces it")
    answers = ask_everything(dialogue)
    named, missing = schema_beside(out)
    text = text_of(answers, out, named)
    if missing:
        write(out.parent / SCHEMA, schema_text())
    write(out, text)
    dialogue.say(f"{out} written")
    if not answers.opened or (answers.eyes and not Path(answers.eyes.encoder).exists()):
        click.echo(f"not planned, since not all of it lies on this disk: fuse plan {out}")
        return
    plan = make_plan(load_recipe(out))
    tell(plan, cost=cost_of(plan, DEFAULT_SIZE))


def _check(out: Path) -> None:
    """What can be wrong with OUT is said before anything is asked."""
    from fuse.errors import RecipeError

    if out.suffix not in {".yaml", ".yml"}:
        raise RecipeError("a recipe's name ends in .yaml", where=out)
    if out.is_dir():
        raise RecipeError("is a folder", where=out)
    if not out.parent.is_dir():
        raise RecipeError(f"the folder {str(out.parent)!r} does not exist", where=out, hint="make it first")
