"""`fuse export`: a finished folder in another form."""

from pathlib import Path
from typing import Any

import click

FORMS = ("native", "portable", "adapter", "gguf")
# option -> the forms that it means something to
OPTIONS = {
    "rank": ("adapter",), "base": ("adapter",), "rest": ("adapter",), "json": ("adapter",),
    "converter": ("gguf",), "python": ("gguf",), "outtype": ("gguf",), "mmproj": ("gguf",),
}  # fmt: skip


@click.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--to", "form", type=click.Choice(FORMS), required=True, help="What to make of it.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(1, 65536), help="adapter: how many singular vectors of each matrix.")
@click.option("--base", help="adapter: folder or hub id of the base. [default: as fuse.json records it]")
@click.option(
    "--rest", type=click.Choice(["whole", "leave"]),
    help="adapter: norms, biases and embeddings that differ are stored whole, or left out.",
)  # fmt: skip
@click.option("--json", "json", is_flag=True, help="adapter: one JSON document about every tensor on stdout.")
@click.option("--converter", type=click.Path(path_type=Path), help="gguf: convert_hf_to_gguf.py of your llama.cpp.")
@click.option("--python", help="gguf: what runs the converter. [default: this Python]")
@click.option(
    "--outtype", type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"]), help="gguf: as the converter takes it."
)
@click.option("--mmproj", is_flag=True, help="gguf: encoder and projector too; alone where OUT is a file.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists (only after the new folder is complete).")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(folder: Path, form: str, out: Path, force: bool, quiet: bool, **options: Any) -> None:
    """Write FOLDER, which `fuse merge` wrote, to OUT in another form.

    native: as a folder of a class that transformers has, where one computes the same; grafts that fold are folded. What
    has no place there is told, every reason.

    portable: with the code that runs it, for `trust_remote_code=True` where there is no `fuse`. Weights stay as they
    are.

    adapter: what the merge did to the language model, as LoRA of a rank beside its base, and how much of it that holds.

    gguf: by llama.cpp's own converter, which is run as a program; OUT is a folder, or a file NAME.gguf.
    """
    given = {key: value for key, value in options.items() if value not in (None, False)}
    for key in given:
        if form not in OPTIONS[key]:
            raise click.UsageError(f"--{key} is for --to {' or '.join(OPTIONS[key])}")
    if form == "native":
        _native(folder, out, force, quiet)
    elif form == "portable":
        from fuse.export.portable import export_portable

        export_portable(folder, out, force=force)
        click.echo(f"{out} is portable")
    elif form == "gguf":
        _gguf(folder, out, force, given)
    else:
        _adapter(folder, out, force, quiet, given)


def _native(folder: Path, out: Path, force: bool, quiet: bool) -> None:
    from fuse.export.native import export_native
    from fuse.progress import byte_progress

    with byte_progress(_bytes(folder), shown=not quiet, name="export") as progress:
        name = export_native(folder, out, force=force, progress=progress)
    click.echo(f"{out} is native: {name}")


def _adapter(folder: Path, out: Path, force: bool, quiet: bool, given: dict[str, Any]) -> None:
    import json

    from fuse.export.adapter import export_adapter
    from fuse.export.adapter_report import report_json, report_lines
    from fuse.progress import byte_progress

    if "rank" not in given:
        raise click.UsageError("--to adapter needs --rank")
    as_json = given.pop("json", False)
    with byte_progress(2 * _bytes(folder), shown=not quiet, name="export") as progress:
        report = export_adapter(folder, out, force=force, progress=progress, **given)
    if as_json:
        click.echo(json.dumps({"folder": str(out), **report_json(report)}, indent=1))
        return
    for line in report_lines(report):
        click.echo(line)
    click.echo(f"{out} is an adapter of {report.base}")


def _gguf(folder: Path, out: Path, force: bool, given: dict[str, Any]) -> None:
    from fuse.export.gguf import export_gguf
    from fuse.sizes import size_text

    for file in export_gguf(folder, out, force=force, **{"converter": None, **given}):
        click.echo(f"{file}: {size_text(file.stat().st_size)}")


def _bytes(folder: Path) -> int:
    """Of all files of weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
