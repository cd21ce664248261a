"""`fuse inspect pairs`: which members to fuse, told by one score of measured parts."""

from pathlib import Path
from typing import Any

import click

from fuse.commands.image_options import image_options, options_of
from fuse.commands.report_option import report_option, write

BASE = "Folder of the language model that the members were trained from."
IMAGES = "Folder of images, for how members see and where their visual tokens lie; its subfolders count too."


@click.command("pairs")
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@click.option("--base", required=True, metavar="FOLDER", help=BASE)
@click.option("--images", type=click.Path(path_type=Path), help=IMAGES)
@image_options
@report_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    members: tuple[str, ...], base: str, images: Path | None, report: Path | None, as_json: bool, **looking: Any
) -> None:  # fmt: skip
    """Put the pairs of MEMBERS in order: which of them fit together, and why.

    The score is made of parts that are shown with it, each from one measure of tokens, deltas or encoders, which tell
    more of it; what was not measured is named. It says whether parts fit, not how good the fused model will be.
    """
    import json

    from rich.console import Console

    from fuse.align.pairs.rank import rank
    from fuse.align.pairs.table import lines, to_rich

    document = rank(members, base, images, options_of(**looking))
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        Console(highlight=False).print(to_rich(document))
        click.echo()
        for line in lines(document):
            click.echo(line)
    write(document, report, quiet=as_json)
