"""`fuse eval`: model folders over a file of questions."""

from pathlib import Path

import click

from fuse.commands.device_option import device_option

METRICS = ("exact", "vqa", "choice", "cider")
OUT = "Folder for FOLDER.jsonl (the answers), results.json and table.md; an interrupted run goes on from it."
NORM = "Choices are compared by their log-likelihood per token, or by its sum."
CARD = "Write the table into README.md of every folder, or of none; by default of those that fuse made (fuse.json)."


@click.command("eval")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FOLDER...")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Questions: JSON Lines.")
@click.option("--out", type=click.Path(path_type=Path), help=OUT)
@click.option("--fresh", is_flag=True, help="Begin anew, whatever is in --out.")
@click.option("--metric", type=click.Choice(METRICS), help="Score all questions by this metric instead of their own.")
@click.option("--norm", default="token", show_default=True, type=click.Choice(["token", "sum"]), help=NORM)
@click.option("--loss", is_flag=True, help="Also the loss of the first right answer, teacher forced.")
@click.option("--max-tokens", default=32, show_default=True, type=click.IntRange(1, 8192), help="Longest answer.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1, 4096))
@device_option()
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, (1 << 31) - 1), help="Of the resampling.")
@click.option("--card/--no-card", default=None, help=CARD)
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="The results as one JSON document on stdout.")
def command(
    folders: tuple[Path, ...], data: Path, out: Path | None, fresh: bool, metric: str | None, norm: str, loss: bool,
    max_tokens: int, batch_size: int, device: str, seed: int, card: bool | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Ask every FOLDER the questions of --data and print a table of scores with intervals.

    With several folders the table compares the others with the first, question by question.
    """
    from fuse.errors import RecipeError
    from fuse.evaluate.questions import check_images, read_questions, with_metric
    from fuse.evaluate.report import carded, check_scorable, document, tabled, write_cards, write_out
    from fuse.evaluate.run import Interrupted, Options, check_folders, evaluate

    if fresh and out is None:
        raise RecipeError("--fresh begins the logs of --out anew", hint="give --out, or leave --fresh out")
    questions = read_questions(data)
    if metric:
        questions = with_metric(questions, metric)
    check_folders(folders, questions)
    check_images(questions)
    check_scorable(questions)
    cards = carded(folders, card)
    options = Options(max_tokens, loss, norm, batch_size, device, shown=not quiet)
    say = (lambda _: None) if quiet else (lambda line: click.echo(line, err=True))
    try:
        answered = evaluate(folders, data, questions, options, out=out, fresh=fresh, say=say)
    except Interrupted as stop:
        click.echo(f"fuse: {stop}", err=True)
        raise SystemExit(130) from None
    table = tabled(questions, answered, seed=seed)
    found = document(table, questions, answered, data, options)
    if out is not None:
        write_out(out, table, found)
    write_cards(cards, table, data, len(questions))
    _show(table, found, as_json)


def _show(table: object, found: dict[str, object], as_json: bool) -> None:
    import json

    from rich.console import Console

    from fuse.evaluate.table import Table, to_rich

    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    elif isinstance(table, Table):
        Console(highlight=False).print(to_rich(table))
