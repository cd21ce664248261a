"""An encoder branch as a recipe gives it: which files, which tensors of them, and the JSON that rebuilds it.

`{name, open_clip: ARCHITECTURE[:TAG], weights: FILE, projector: FILE}`, `{name, timm: ARCHITECTURE, weights: FILE,
projector: FILE}` or `{name, encoder: FOLDER or hub id, projector: FILE}`, each with or without `layer`. The projector
is a file of linear layers or a projector folder (`fuse.branches.projector_folder`). Only headers and configs are read;
torch is not imported. Tensors are called `encoder.<name in the tower>`, and `projector.<i>.weight` / `.bias` or, of a
folder, `projector.<name in it>`; the tower is the image encoder up to what its projector reads, so text towers are left
out, and whatever works on pooled tokens where patches are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.branches import encoder_layers
from fuse.branches.encoder_libraries import Row, Tower, Wanted, check_rows, open_clip, timm, transformers
from fuse.branches.encoder_reads import Reads
from fuse.branches.projector_folder import Given, linear_projector, open_projector
from fuse.branches.projector_kinds import Described
from fuse.checkpoint import Checkpoint
from fuse.errors import CheckpointError, RecipeError
from fuse.safetensors_header import read_header

LIBRARIES = ("open_clip", "timm", "encoder")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


@dataclass(frozen=True)
class EncoderFiles:
    """What a branch is made of.

    config: the JSON that `EncoderBranch` and `EncoderEyes` are built from. rows: every tensor of the files.
    hidden_size: the size of the tokens it gives, which must be the host's; 0 where it gives none. has_class: whether a
    class token's attention can rank them. grid: (h, w) visual tokens of every image, None where only the built tower
    knows or where they are no patches. checkpoint: the folder of an `encoder:` (its preprocessor_config.json belongs
    into the branch's folder, and hub weights must be fetched), else None. projector: as its files give it.
    """

    config: dict[str, Any]
    rows: tuple[Row, ...]
    hidden_size: int
    projector: Given
    has_class: bool = False
    grid: tuple[int, int] | None = None
    checkpoint: Checkpoint | None = None


def read_encoder(entry: Mapping[str, Any], *, relative_to: Path) -> EncoderFiles:
    """The files of one `vision:` entry that has `open_clip`, `timm` or `encoder`.

    entry: its keys as strings. relative_to: the recipe's folder. Raises RecipeError for what the recipe says wrongly
    and CheckpointError for files that do not fit each other.
    """
    name = entry.get("name", "")
    where = f"vision.{name}"
    layer = entry.get("layer", encoder_layers.LAST)
    given = [key for key in LIBRARIES if entry.get(key)]
    if len(given) != 1:
        raise RecipeError(f"names {len(given)} of open_clip, timm and encoder", where=where, hint="name one")
    if not entry.get("projector"):
        raise RecipeError("has no projector", where=where, hint="`projector: FILE.safetensors`, trained for the host")
    folder = _folder(entry["projector"], relative_to)
    projector = open_projector(folder) if folder else None
    reads = projector.kind.reads if projector and projector.kind else Reads()
    if layer != encoder_layers.LAST and reads.what != "patches":
        raise RecipeError(
            f"chooses among patch tokens, and its projector reads {reads.what} features", where=f"{where}.layer",
            hint="leave `layer` out",
        )  # fmt: skip
    wanted = Wanted(layer, reads.what in ("pooled", "projected"))
    if given[0] == "encoder":
        if entry.get("weights"):
            raise RecipeError("`encoder` is a folder that holds its weights; leave `weights` out", where=where)
        tower = transformers(name, entry["encoder"], relative_to, wanted)
    elif not entry.get("weights"):
        raise RecipeError(f"{given[0]} needs `weights: FILE.safetensors`", where=where)
    else:
        file = _file(entry["weights"], relative_to, "weights")
        read = open_clip if given[0] == "open_clip" else timm
        tower = read(entry[given[0]], read_header(file), file, where, wanted)
    projector = projector or linear_projector(_file(entry["projector"], relative_to, "projector"))
    check_rows(tower)
    width = _width(tower, reads, where)
    if width is not None and projector.width != width:
        told = f"takes tokens of {projector.width} numbers but the encoder gives {width}"
        raise CheckpointError(told, where=projector.where)
    config = tower.config | {"layer": layer} | projector.config
    if projector.kind and (tokens := _tokens(projector.kind, tower)) is not None:
        config["tokens"] = tokens
    rows = tower.rows + tuple(Row(*placed) for placed in projector.placed)
    patches = projector.kind is None
    return EncoderFiles(
        config, rows, projector.hidden_size, projector, tower.has_class and reads.what == "patches",
        tower.grid if patches else None, tower.checkpoint,
    )  # fmt: skip


def _width(tower: Tower, reads: Reads, where: str) -> int | None:
    """Numbers of one feature that is read, None where only the built tower knows.

    Raises RecipeError where the encoder has no such features.
    """
    name, what = tower.config["architecture"], f"its projector reads {reads.what} features"
    if reads.layers:
        count = tower.stack.count if tower.stack and not tower.stack.widths else 0
        far = [layer for layer in reads.layers if not -count <= layer < count]
        if far:
            told = f"{count} blocks, and no block {far[0]}" if count else "no blocks that can be counted"
            raise RecipeError(f"{what} of blocks, and {name} has {told}", where=where)
    if reads.what in ("pooled", "projected") and (tower.pooled is None or (reads.what == "projected") > tower.projects):
        hint = "a CLIP of open_clip, or of transformers with its visual_projection"
        raise RecipeError(f"{what}, which {name} does not give", where=where, hint=hint)
    if reads.what == "class" and not (tower.has_class if reads.layers else tower.normed):
        raise RecipeError(f"{what}, and {name} has no class token", where=where, hint="a vision transformer with one")
    return tower.pooled if reads.what in ("pooled", "projected") else tower.width


def _tokens(kind: Described, tower: Tower) -> int | None:
    """Visual tokens of an image, None where only the built tower knows."""
    if kind.reads.what in ("pooled", "class"):
        return kind.tokens(len(kind.reads.layers) or 1)
    if kind.tokens(1) == 0:  # as of any number
        return 0
    if tower.grid is None or "grid" not in tower.config:
        return None
    patches = tower.grid[0] * tower.grid[1]
    if kind.reads.what == "patches":
        return kind.tokens(patches)
    return None if tower.prefix is None else kind.tokens(tower.prefix + patches)


def same_projector(location: str, relative_to: Path, first: Given) -> Given:
    """A projector that can be averaged with another, tensor by tensor.

    Raises RecipeError where there is none, CheckpointError where it is not of the same kind, config and sizes.
    """
    folder = _folder(location, relative_to)
    found = open_projector(folder) if folder else linear_projector(_file(location, relative_to, "projector"))
    mine, other = found.config["projector"], first.config["projector"]
    if mine != other:
        raise CheckpointError(
            f"is another projector than {first.where}: {_difference(mine, other)}", where=found.where,
            hint="projectors of one kind and config can be averaged",
        )  # fmt: skip
    return found


def _difference(mine: Any, other: Any) -> str:
    """What is different in two projectors of a branch's JSON."""
    if isinstance(mine, list) or isinstance(other, list) or mine["kind"] != other["kind"]:
        names = ["linear layers" if isinstance(one, list) else one["kind"] for one in (mine, other)]
        return f"{names[0]}, not {names[1]}" if names[0] != names[1] else "linear layers of other sizes"
    keys = [*other["config"], *(key for key in mine["config"] if key not in other["config"])]
    key = next(key for key in keys if mine["config"].get(key) != other["config"].get(key))
    return f"{key} is {mine['config'].get(key)!r}, not {other['config'].get(key)!r}"


def _folder(location: str, relative_to: Path) -> Path | None:
    """The projector folder that the recipe names, None where it names a file."""
    path = Path(location) if Path(location).is_absolute() else relative_to / location
    return path if path.is_dir() else None


def _file(location: str, relative_to: Path, key: str) -> Path:
    """A safetensors file named by the recipe; pickles are refused by name and by content."""
    path = Path(location) if Path(location).is_absolute() else relative_to / location
    if path.is_dir():
        raise RecipeError("is a folder", where=path, hint=f"`{key}` is one safetensors file")
    if not path.exists():
        raise RecipeError("there is no such file", where=path, hint=f"`{key}` is one safetensors file")
    pickled = path.suffix.lower() in _PICKLES
    if path.is_file() and not pickled:
        with path.open("rb") as stream:
            pickled = stream.read(2) in {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"}
    if pickled:
        raise CheckpointError(
            "is not safetensors but a pickle, which can run code; fuse does not read it", where=path,
            hint="where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)",
        )  # fmt: skip
    return path
