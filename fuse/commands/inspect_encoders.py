"""`fuse inspect encoders`: features of several vision encoders over a folder of images."""

from pathlib import Path
from typing import Any

import click

from fuse.commands.image_options import image_options, options_of
from fuse.commands.report_option import report_option, write

IMAGES = "Folder of images; its subfolders count too."
LAYERS = "Blocks to read, such as 0,5,-1 (-1 is the last); by default up to 12 of them, evenly spaced."
LLM = "Also look into the language models, which takes their time and memory."
TEXTS = "What the language models are asked, a question a line, in turn over the images (with --llm)."
CELLS = "The most cells of the grid that tokens are pooled to."


@click.command("encoders")
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@click.option("--images", required=True, type=click.Path(path_type=Path), help=IMAGES)
@click.option("--texts", type=click.Path(path_type=Path), help=TEXTS)
@click.option("--layers", help=LAYERS)
@click.option("--llm", is_flag=True, help=LLM)
@click.option("--cells", default=64, show_default=True, type=click.IntRange(1, 4096), help=CELLS)
@image_options
@report_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    members: tuple[str, ...], images: Path, texts: Path | None, layers: str | None, llm: bool, cells: int,
    report: Path | None, as_json: bool, **looking: Any,
) -> None:  # fmt: skip
    """Tell how alike the vision encoders of MEMBERs see the same images, before they are fused.

    A MEMBER is a folder or hub id: a multimodal model, a fused one (each branch is an encoder) or a vision encoder; or
    timm:ARCHITECTURE=FILE or open_clip:ARCHITECTURE[:TAG]=FILE, with weights in safetensors.
    """
    import json

    from fuse.errors import RecipeError

    if texts is not None and not llm:
        raise RecipeError("--texts is what language models are asked", hint="give --llm too")
    asked, wanted = _texts(texts), _layers(layers)
    from fuse.align.encoders.compare import PROMPT, compare

    options = options_of(layers=wanted, cells=cells, llm=llm, texts=asked or (PROMPT,), **looking)
    compared = compare(members, images, options)
    if as_json:
        click.echo(json.dumps(compared.document, indent=1, ensure_ascii=False))
    else:
        _show(compared.document)
    write(compared.document, report, quiet=as_json, samples=compared.samples)


def _show(document: dict[str, object]) -> None:
    from rich.console import Console

    from fuse.align.encoders.table import to_rich
    from fuse.align.encoders.words import all_sentences
    from fuse.errors import printable

    console = Console(highlight=False)
    for table in to_rich(document):
        console.print(table)
        console.print()
    for sentence in all_sentences(document):
        click.echo(printable(sentence))


def _layers(text: str | None) -> tuple[int, ...] | None:
    """The numbers of `0,5,-1`. Raises RecipeError for anything else."""
    from fuse.errors import RecipeError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"--layers is {text!r}, not numbers between commas", hint="such as 0,5,-1") from None


def _texts(file: Path | None) -> tuple[str, ...]:
    """The lines of a file that are not empty. Raises RecipeError where there are none."""
    from fuse.errors import MachineError, RecipeError

    if file is None:
        return ()
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise RecipeError("is not a plain file", where=file)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (FileNotFoundError, NotADirectoryError):
        raise RecipeError("there is no such file", where=file) from None
    except IsADirectoryError:
        raise RecipeError("is a folder, not a file of questions", where=file) from None
    except UnicodeDecodeError:
        raise RecipeError("is not UTF-8 text", where=file) from None
    except OSError as error:
        raise MachineError(f"cannot be read ({error.strerror})", where=file) from None
    if not (found := tuple(line for line in lines if line)):
        raise RecipeError("holds no question", where=file)
    return found
