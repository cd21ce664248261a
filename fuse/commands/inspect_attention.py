"""`fuse inspect attention`: where each model looks in an image when it answers a question."""

from pathlib import Path
from typing import Any

import click

from fuse.commands.device_option import device_option
from fuse.commands.report_option import report_option, write

IMAGE = "The image that every model is asked about."
QUESTION = "What every model is asked, each in its own template."
OUT = "Draw the models side by side: a PNG, or a folder that gets attention.png."
LAYERS = "The language models' layers that count, such as 10-20 or 3, from 0; by default all."
CELLS = "Cells on the longer side of the grid that maps are compared on."
NAME = "attention.png"


@click.command("attention")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path))
@click.option("--image", required=True, type=click.Path(path_type=Path), help=IMAGE)
@click.option("--question", required=True, help=QUESTION)
@click.option("--out", metavar="DIR|PNG", type=click.Path(path_type=Path), help=OUT)
@click.option("--layers", help=LAYERS)
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1, 8192))
@click.option("--cells", default=32, show_default=True, type=click.IntRange(2, 256), help=CELLS)
@device_option()
@report_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    folders: tuple[Path, ...], image: Path, question: str, out: Path | None, layers: str | None, max_tokens: int,
    cells: int, device: str, report: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Tell where each model in FOLDERs looks when it answers, and how far apart those places are.

    A FOLDER is a multimodal model, or a fused one, each branch of which is shown. Models are loaded one at a time.
    Attention is a mean over the answer's tokens, the heads and the layers of the language model.
    """
    import json
    import sys

    wanted, picture = _layers(layers), None if out is None else _picture(out, image)
    from fuse.align.attention.document import inspect_attention
    from fuse.errors import printable

    say = (lambda text: click.echo(printable(text), err=True)) if sys.stderr.isatty() else None
    found = inspect_attention(
        folders, image, question, layers=wanted, max_tokens=max_tokens, device=device, cells=cells, say=say
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(found.document, indent=1, ensure_ascii=False))
    else:
        _show(found.document)
    write(found.document, report, image=found.image, quiet=as_json)
    if picture is not None:  # behind the report, whose folder may be the picture's
        from fuse.align.attention.picture import draw

        draw(found, picture)
        if not as_json:
            click.echo(f"attention: {picture}", err=True)


def _show(document: dict[str, Any]) -> None:
    from rich.console import Console

    from fuse.align.attention.table import to_rich
    from fuse.errors import printable

    console = Console(highlight=False)
    for table in to_rich(document):
        console.print(table)
        console.print()
    for sentence in document["sentences"]:
        click.echo(printable(sentence))


def _layers(text: str | None) -> range | None:
    """The layers of `10-20`, both ends included, or of `3`. Raises RecipeError for anything else."""
    import re

    from fuse.errors import RecipeError

    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise RecipeError(f"--layers is {text!r}, not one layer or a range of them", hint="such as 10-20")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _picture(out: Path, image: Path) -> Path:
    """The PNG to write: `out` itself, or attention.png in the folder that it is or becomes.

    Raises RecipeError for another kind of picture, for a place that is not there, and where it would be written over
    the image.
    """
    from fuse.errors import RecipeError

    if not out.is_dir() and out.suffix and out.suffix.lower() != ".png":
        raise RecipeError("the attention picture is a PNG", where=out, hint=f"name it {out.stem}.png")
    picture = out if out.suffix.lower() == ".png" and not out.is_dir() else out / NAME
    if not out.parent.is_dir():
        raise RecipeError("there is no such folder for the attention picture", where=out.parent)
    if out.exists() and not out.is_dir() and picture != out:
        raise RecipeError("is a file, not a folder for the attention picture", where=out)
    if picture.is_dir():
        raise RecipeError("the attention picture would be written over a folder", where=picture, hint="name another")
    if picture.exists() and image.exists() and picture.samefile(image):
        raise RecipeError("the attention picture would be written over the image", where=picture, hint="name another")
    return picture
