"""`fuse export`: a finished folder in another form."""

from importlib import import_module
from pathlib import Path

import click

# form -> the module and the function that writes it, called with the folder, the output and `force`
EXPORTS = {"portable": ("fuse.export.portable", "export_portable")}


@click.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--to", "form", type=click.Choice(list(EXPORTS)), required=True, help="What to make of it.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT if it exists (only after the new folder is complete).")
def command(folder: Path, form: str, out: Path, force: bool) -> None:
    """Write FOLDER, which `fuse merge` wrote, to OUT in another form.

    portable: with the code that runs it, for `trust_remote_code=True` where there is no `fuse`. Weights stay as they
    are.
    """
    module, function = EXPORTS[form]
    getattr(import_module(module), function)(folder, out, force=force)
    click.echo(f"{out} is {form}")
