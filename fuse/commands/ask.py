"""`fuse ask`: one question to one folder, or to the members of a recipe together."""

from pathlib import Path

import click

from fuse.commands.device_option import device_option

RECIPES = {".yaml", ".yml"}
ATTENTION = "Draw where the answer looked, as a PNG (one picture for each image; fused folders only)."
SET = "What is asked of a graft, such as lion.task=region; may be repeated."


@click.command("ask")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("question")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="An image; may be repeated.")
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(1, 8192))
@click.option("--attention", type=click.Path(path_type=Path), help=ATTENTION)
@click.option("--set", "settings", multiple=True, metavar="GRAFT.KEY=VALUE", help=SET)
@click.option("--ensemble", is_flag=True, help="FOLDER is a recipe: its members answer together, for comparison.")
@device_option()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    folder: Path, question: str, images: tuple[Path, ...], max_tokens: int, attention: Path | None,
    settings: tuple[str, ...], ensemble: bool, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Ask the model in FOLDER a QUESTION, greedily, and print the answer as it comes."""
    import json

    from fuse.errors import RecipeError

    if folder.suffix in RECIPES and not ensemble:
        raise RecipeError("is a recipe", where=folder, hint="merge it first, or --ensemble to ask its members together")
    if ensemble and attention:
        raise RecipeError("--attention draws one model", hint="leave --ensemble out")
    if settings and (ensemble or attention):
        raise RecipeError(f"--set and {'--ensemble' if ensemble else '--attention'} do not go together")
    _check(folder, images, attention)
    say = None if as_json else (lambda text: click.echo(text, nl=False))
    told: dict[str, object] = {"question": question}
    if ensemble:
        from fuse.ensemble import ask_members

        told["answer"] = ask_members(folder, question, images, max_tokens=max_tokens, device=device, say=say)
    else:
        from fuse.ask import ask, load

        asked = _settings(folder, settings)
        answerer = load(folder, device=device, images=images)
        if attention is None:
            told["answer"] = ask(answerer, question, images=images, max_tokens=max_tokens, say=say, grafts=asked)
        else:
            from fuse.attend import attended_answer

            found = attended_answer(answerer, question, images, attention, max_tokens=max_tokens, say=say)
            told |= {"answer": found[0], "attention": [str(file) for file in found[1]]}
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    click.echo("")
    for file in told.get("attention", ()):  # pyright: ignore[reportGeneralTypeIssues]
        click.echo(f"attention: {file}", err=True)


def _settings(folder: Path, settings: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """What is asked of grafts, by graft; before a model is loaded."""
    if not settings:
        return {}
    from fuse.ask_folder import check_folder
    from fuse.grafts.asking import options_of

    return options_of(settings, check_folder(folder)[0])


def _check(folder: Path, images: tuple[Path, ...], attention: Path | None) -> None:
    """What can be wrong is said before a model is loaded; it opens the images again."""
    from fuse.images import open_image

    if attention and folder.is_dir():
        from fuse.attend import check_attention

        check_attention(folder, images, attention)
    for image in images:
        open_image(image)
