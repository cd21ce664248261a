"""`fuse ask`: one question to one folder."""

from pathlib import Path

import click


@click.command("ask")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("question")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="An image; may be repeated.")
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(1, 8192))
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(folder: Path, question: str, images: tuple[Path, ...], max_tokens: int, device: str, as_json: bool) -> None:
    """Ask the model in FOLDER a QUESTION, greedily, and print the answer as it comes."""
    import json

    from fuse.ask import ask, load

    answerer = load(folder, device=device)
    say = None if as_json else (lambda text: click.echo(text, nl=False))
    answer = ask(answerer, question, images=images, max_tokens=max_tokens, say=say)
    click.echo(json.dumps({"question": question, "answer": answer}, ensure_ascii=False) if as_json else "")
