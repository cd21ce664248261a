"""`fuse export`: a finished folder in another form."""

from pathlib import Path

import click

FORMS = ("native", "portable", "adapter", "gguf")


@click.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--to", "form", type=click.Choice(FORMS), required=True, help="What to make of it.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT if it exists (only after the new folder is complete).")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(folder: Path, form: str, out: Path, force: bool, quiet: bool) -> None:
    """Write FOLDER, which `fuse merge` wrote, to OUT in another form.

    native: as a folder of a class that transformers has, where one computes the same; grafts that fold are folded. What
    has no place there is told, every reason.

    portable: with the code that runs it, for `trust_remote_code=True` where there is no `fuse`. Weights stay as they
    are.
    """
    from fuse.progress import byte_progress

    if form == "native":
        from fuse.checkpoint import read_tensors
        from fuse.export.native import export_native

        total = sum(entry.nbytes for entry in read_tensors(folder).values()) if folder.is_dir() else 0
        with byte_progress(total, shown=not quiet) as progress:
            name = export_native(folder, out, force=force, progress=progress)
        click.echo(f"{out} is native: {name}")
        return
    from fuse.export.portable import export_portable

    export_portable(folder, out, force=force)
    click.echo(f"{out} is {form}")
