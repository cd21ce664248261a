"""A native folder as GGUF, by llama.cpp's own converter: checked before it runs, and whole or not at all after it."""

from pathlib import Path

import fuse
from fuse.digests import CARD, RECORD, file_sha256
from fuse.errors import RecipeError
from fuse.export.folders import Opened, check_target, opened
from fuse.export.gguf_card import gguf_card
from fuse.export.gguf_converter import Converter, Half, architecture, convert, find_converter, supported
from fuse.export.intact import intact
from fuse.partial import new_file, new_folder
from fuse.replaced import check_place
from fuse.small_files import write_json

SUFFIX = ".gguf"
NAMES: dict[Half, str] = {"TEXT": "model-{ftype}.gguf", "MMPROJ": "mmproj-{ftype}.gguf"}
KEPT = ("plan", "recipe", "members", "licences")  # of fuse.json


def export_gguf(
    folder: Path, out: Path, *, converter: Path | None, python: str | None = None, outtype: str = "auto",
    mmproj: bool = False, force: bool = False,
) -> list[Path]:  # fmt: skip
    """Write `out` with the user's converter; the files of it.

    out: a file NAME.gguf, or a folder. mmproj: convert encoder and projector: beside the language model in a folder,
    alone in a file. outtype: as the converter takes it. python: what runs the converter; this Python where left out.
    Raises RecipeError for a folder that is fused, an architecture that the converter does not convert, and a target
    that cannot be written; CheckpointError for a folder that is not as fuse wrote it; MachineError where the converter
    fails, with its exit code and last lines.
    """
    source = opened(folder)
    if source.is_fused:
        told = "llama.cpp has no architecture for a fused folder"
        raise RecipeError(told, where=folder, hint="`fuse export --to native` makes one of a class, where one fits")
    alone = out.suffix == SUFFIX
    _check_file(folder, out, force=force) if alone else check_target(folder, out, force=force)
    script = find_converter(converter, python)
    halves: list[Half] = ["MMPROJ"] if mmproj and alone else ["TEXT", *(["MMPROJ"] if mmproj else [])]
    _check_known(source, script, halves)
    if alone:
        with new_file(out, "export", force=force) as file, intact(source):
            convert(script, folder.resolve(), file, outtype, halves[0]).replace(file)  # {ftype} may be in its name
        return [out]
    with new_folder(out, "export", force=force) as room:
        with intact(source):
            found: dict[Half, Path] = {
                half: convert(script, folder.resolve(), room / NAMES[half], outtype, half) for half in halves
            }
        told = {key: value for key, value in source.record.told.items() if key in KEPT}
        told["exported"] = {
            "to": "gguf", "from": dict(source.record.sha256), "outtype": outtype,
            "architectures": {half: architecture(source.config, half) for half in halves},
            "converter": file_sha256(script.script),
        }  # fmt: skip
        told["files"] = {file.name: file_sha256(file) for file in found.values()}
        write_json(room / RECORD, {"fuse": fuse.__version__, **told, "sha256": {}})
        names: dict[Half, str] = {half: file.name for half, file in found.items()}
        card = gguf_card(source, names, told)
        (room / CARD).write_bytes(card.encode())
    return [out / file.name for file in found.values()]


def _check_file(folder: Path, out: Path, *, force: bool) -> None:
    """Refuse a file that is there (unless forced), or that would lie in the folder."""
    if out.is_symlink() or (out.exists() and not out.is_file()):
        raise RecipeError("the output is there and is no plain file", where=out)
    if out.exists() and not force:
        raise RecipeError("the output already exists", where=out, hint="choose another file, or --force")
    if not out.parent.is_dir():
        raise RecipeError(f"the folder {str(out.parent)!r} does not exist", where=out, hint="make it first")
    if folder.resolve() in out.resolve().parents:
        raise RecipeError("the output would lie in the folder", where=out)
    check_place(out)


def _check_known(source: Opened, converter: Converter, halves: list[Half]) -> None:
    """RecipeError where the converter does not know the folder's architecture."""
    known = supported(converter)
    for half in halves:
        name = architecture(source.config, half)
        what = "an encoder with its projector" if half == "MMPROJ" else "a language model"
        if half == "MMPROJ" and not isinstance(source.config.get("vision_config"), dict):
            raise RecipeError("the folder has no encoder", where=source.folder, hint="leave --mmproj out")
        if name not in known[half]:
            told = f"{converter.script.name} does not convert {name or 'a folder without architectures'} as {what}"
            hint = f"it knows {len(known[half])}, which its --print-supported-models lists"
            raise RecipeError(told, where=source.folder, hint=hint)
