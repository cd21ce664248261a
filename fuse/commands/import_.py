"""`fuse import`: an official checkpoint of one of the systems into donor folders."""

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fuse.importers import IMPORTERS

if TYPE_CHECKING:
    from fuse.importers.run import Report


class Kinds(click.Command):
    """A command whose help ends with the kinds of file that there are."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: list[tuple[str, str]] = []
        for kind, row in IMPORTERS.items():
            module = import_module(f"fuse.importers.{row.module}")
            options = ", ".join(getattr(module, "OPTIONS", ()))
            rows.append((kind, f"{module.HELP}.{f' --set: {options}.' if options else ''}"))
        with formatter.section("Kinds"):
            formatter.write_dl(rows)
        super().format_epilog(ctx, formatter)


@click.command("import", cls=Kinds)
@click.argument("kind")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--host", type=click.Path(path_type=Path), help="Folder of the language model that it was trained for.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="What the file does not tell; may be repeated."
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists (only after the new folder is complete).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, with a row per tensor.")
def command(
    kind: str, source: Path, out: Path, host: Path | None, settings: tuple[str, ...], force: bool, as_json: bool
) -> None:
    """Sort the tensors of FILE, an official checkpoint of KIND, into the donor folder OUT.

    Nothing in FILE is run. OUT holds graft.json and graft.safetensors, projector.json and projector.safetensors, and
    language/, as far as FILE has them. With --host OUT records which language model the parts belong to, so that a
    recipe that puts them on one of another basis is refused. What is printed says where every tensor went, or why it
    was left out.
    """
    import json

    from fuse.errors import RecipeError
    from fuse.importers.run import import_file
    from fuse.importers.write import nbytes

    options: dict[str, str] = {}
    for setting in settings:
        key, given, value = setting.partition("=")
        if not given or not key or key in options:
            raise RecipeError(f"{setting!r} is not KEY=VALUE, once for each key", where="--set")
        options[key] = value
    report = import_file(kind, source, out, host=host, options=options, force=force)
    if as_json:
        click.echo(json.dumps({
            "folder": str(out), "kind": kind, "source": report.source,
            "pieces": {
                what: {
                    "kind": piece.kind, "config": piece.config, "tensors": len(piece.tensors), "bytes": nbytes(piece)
                }
                for what, piece in report.pieces.items()
            },
            "went": {key: [f"{what}: {name}" for what, name in places] for key, places in report.went.items()},
            "dropped": report.dropped,
        }, indent=1))  # fmt: skip
    else:
        click.echo("\n".join([f"{out}: {kind} from {report.source['file']}", *_lines(report)]))


def _lines(report: "Report") -> list[str]:
    """The coverage table: what there is now, where each tensor went, what was left out and why; layers folded."""
    from fuse.importers.run import folded
    from fuse.importers.write import nbytes
    from fuse.sizes import counted, size_text

    lines = [
        f"  {what}: {piece.kind}, {counted(len(piece.tensors), 'tensor')}, {size_text(nbytes(piece))}"
        for what, piece in report.pieces.items()
    ]
    went = Counter(
        (folded(key), what, folded(name)) for key, places in report.went.items() for what, name in places
    )  # fmt: skip
    dropped = Counter((folded(key), why) for key, why in report.dropped.items())
    wide = min(60, max((len(key) for key, *_ in (*went, *dropped)), default=0))
    for (key, what, name), count in went.items():
        lines.append(f"  {key:{wide}}  -> {what} {name}{_times(count)}")
    for (key, why), count in dropped.items():
        lines.append(f"  {key:{wide}}  left out: {why}{_times(count)}")
    return lines


def _times(count: int) -> str:
    return f" ({count:,})" if count > 1 else ""
