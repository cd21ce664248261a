"""`fuse inspect tokens`: tokenizers, special tokens and chat templates, side by side."""

from pathlib import Path
from typing import Any

import click

from fuse.commands.report_option import report_option, write

BASE = "The folder of `base` in the recipe: shown, and counted in what `embeddings` gives."
TEXT = "A text that every tokenizer cuts (UTF-8); needs tokenizer.json in all folders."


@click.command("tokens")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@click.option("--base", metavar="FOLDER", help=BASE)
@click.option("--text", type=click.Path(path_type=Path), help=TEXT)
@report_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(folders: tuple[str, ...], base: str | None, text: Path | None, report: Path | None, as_json: bool) -> None:
    """Compare tokenizers, special tokens and chat templates of FOLDERs with those of the first, the host.

    A FOLDER is a member, a language model, a fused folder or a hub id. Reads configs, tokenizers and safetensors
    headers, no weights, and tells what `language.embeddings` of a recipe would make of their rows.
    """
    import json

    from fuse.align.tokens.document import inspect_tokens
    from fuse.align.tokens.text import read_text

    found = inspect_tokens(folders, base=base, text=None if text is None else read_text(text))
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=True))
    else:
        _show(found)
    write(found, report, quiet=as_json)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    from fuse.align.tokens.view import lines, to_rich

    console = Console(highlight=False, soft_wrap=False)
    console.print(to_rich(found))
    for line in lines(found):
        click.echo(line)
