"""`--report DIR`, that the kinds of `fuse inspect` share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

REPORT = "Folder for one HTML page with charts, and a PNG of each; an earlier report in it is replaced."


def _prepared(ctx: click.Context, param: click.Parameter, folder: Path | None) -> Path | None:
    if folder is not None:
        from fuse.report.html import prepare

        prepare(folder)
    return folder


# checked before the work begins
report_option = click.option(
    "--report", metavar="DIR", type=click.Path(path_type=Path), callback=_prepared, help=REPORT
)


def write(document: Mapping[str, Any], folder: Path | None, *, quiet: bool, **more: Any) -> None:
    """Write the report where one is asked for, and say where it is unless quiet. more: as `write_report` takes it."""
    if folder is None:
        return
    from fuse.errors import printable
    from fuse.report.html import write_report

    file = write_report(document, folder, **more)
    if not quiet:
        click.echo(printable(f"report: {file}"))
