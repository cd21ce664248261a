"""`fuse inspect pairs`: which members to fuse, told by one score of measured parts."""

from pathlib import Path

import click

from fuse.commands.report_option import report_option, write

BASE = "Folder of the language model that the members were trained from."
IMAGES = "Folder of images, for how members see and where their visual tokens lie; its subfolders count too."
LIMIT = "The most samples for measures that need them together."
SKIP = "Leave out images that cannot be read."
DEVICE = "Where encoders run: cpu, cuda, cuda:1 or mps."


@click.command("pairs")
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@click.option("--base", required=True, metavar="FOLDER", help=BASE)
@click.option("--images", type=click.Path(path_type=Path), help=IMAGES)
@click.option("--limit", default=2000, show_default=True, type=click.IntRange(4, 20_000), help=LIMIT)
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1, 1024))
@click.option("--device", default="cpu", show_default=True, help=DEVICE)
@click.option("--skip-bad", is_flag=True, help=SKIP)
@click.option("--quiet", is_flag=True, help="No progress.")
@report_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    members: tuple[str, ...], base: str, images: Path | None, limit: int, batch_size: int, device: str,
    skip_bad: bool, quiet: bool, report: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Put the pairs of MEMBERS in order: which of them fit together, and why.

    The score is made of parts that are shown with it, each from one measure of tokens, deltas or encoders, which tell
    more of it; what was not measured is named. It says whether parts fit, not how good the fused model will be.
    """
    import json

    from rich.console import Console

    from fuse.align.encoders.compare import Options
    from fuse.align.pairs.rank import rank
    from fuse.align.pairs.table import lines, to_rich

    options = Options(limit=limit, skip_bad=skip_bad, batch=batch_size, device=device, shown=not quiet)
    document = rank(members, base, images, options)
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        Console(highlight=False).print(to_rich(document))
        click.echo()
        for line in lines(document):
            click.echo(line)
    write(document, report, quiet=as_json)
