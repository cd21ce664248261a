"""An encoder branch as a recipe gives it: which files, which tensors of them, and the JSON that rebuilds it.

`{name, open_clip: ARCHITECTURE[:TAG], weights: FILE, projector: FILE}`, `{name, timm: ARCHITECTURE, weights: FILE,
projector: FILE}` or `{name, encoder: FOLDER or hub id, projector: FILE}`, each with or without `layer`. Only headers
and configs are read; torch is not imported. Tensors are called `encoder.<name in the tower>` and `projector.<i>.weight`
/ `.bias`; the tower is the image encoder up to its patch tokens, so text towers and whatever works on pooled tokens are
left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.branches import encoder_layers, native_towers, open_clip_files, projector_files, timm_files, tower_types
from fuse.branches.encoder_grid import grid_of, stated_grid
from fuse.checkpoint import Checkpoint, open_checkpoint
from fuse.errors import CheckpointError, RecipeError
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry, read_header

LIBRARIES = ("open_clip", "timm", "encoder")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_COUNTER = "num_batches_tracked"  # of batch norm, the one tensor of integers


@dataclass(frozen=True)
class Row:
    """One stored tensor. name: what it is called in the branch, or None when it is not used, and then why."""

    entry: TensorEntry
    name: str | None
    reason: str = ""


@dataclass(frozen=True)
class EncoderFiles:
    """What a branch is made of.

    config: the JSON that `EncoderBranch` and `EncoderEyes` are built from. rows: every tensor of the files.
    hidden_size: the size of the tokens it gives, which must be the host's. has_class: whether a class token's attention
    can rank them. grid: (h, w) visual tokens of every image, None where only the built tower knows. checkpoint: the
    folder of an `encoder:` (its preprocessor_config.json belongs into the branch's folder, and hub weights must be
    fetched), else None.
    """

    config: dict[str, Any]
    rows: tuple[Row, ...]
    hidden_size: int
    has_class: bool = False
    grid: tuple[int, int] | None = None
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class _Tower:
    """width: size of one token, None where only the built tower knows."""

    config: dict[str, Any]
    rows: tuple[Row, ...]
    width: int | None
    has_class: bool
    grid: tuple[int, int] | None
    where: object
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
    if given[0] == "encoder":
        if entry.get("weights"):
            raise RecipeError("`encoder` is a folder that holds its weights; leave `weights` out", where=where)
        tower = _transformers(name, entry["encoder"], relative_to, layer)
    elif not entry.get("weights"):
        raise RecipeError(f"{given[0]} needs `weights: FILE.safetensors`", where=where)
    else:
        file = _file(entry["weights"], relative_to, "weights")
        tensors = read_header(file)
        read = _open_clip if given[0] == "open_clip" else _timm
        tower = read(entry[given[0]], tensors, file, where, layer)
    file = _file(entry["projector"], relative_to, "projector")
    projector = projector_files.read_projector(read_header(file), file)
    _check_rows(tower)
    if tower.width is not None and projector.layers[0]["in"] != tower.width:
        raise CheckpointError(
            f"takes tokens of {projector.layers[0]['in']} numbers but the encoder gives {tower.width}", where=file
        )
    config = tower.config | {
        "layer": layer,
        "projector": list(projector.layers),
        "projector_names": list(projector.names),
    }
    rows = tower.rows + tuple(Row(*placed) for placed in projector.placed)
    hidden_size = int(projector.layers[-1]["out"])
    return EncoderFiles(config, rows, hidden_size, tower.has_class, tower.grid, tower.checkpoint)


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


def _open_clip(text: str, tensors: Mapping[str, TensorEntry], file: Path, where: str, layer: int) -> _Tower:
    name, _, tag = text.partition(":")
    model = open_clip_files.architecture(name, where)
    vision = model["vision_cfg"]
    prepare = open_clip_files.preprocessing(name, tag, model, file, where)
    size = _pair(vision["image_size"], file)
    config = {
        "library": "open_clip", "architecture": name,
        "tower": {"embed_dim": model["embed_dim"], "quick_gelu": model["quick_gelu"], "vision_cfg": vision},
        "preprocess": {"size": list(size), **prepare},
    }  # fmt: skip
    whole = any(key.startswith("visual.") for key in tensors)
    inner: list[tuple[TensorEntry, str | None, str]] = []
    for key, entry in tensors.items():
        if whole and not key.startswith("visual."):
            inner.append((entry, None, "outside the vision tower"))
        else:
            inner.append((entry, key.removeprefix("visual."), ""))
    if "timm_model_name" in vision:
        rows = timm_files.rows(inner, trunk=True)
        shapes = _shapes(rows)
        size_of_token = timm_files.measure(vision["timm_model_name"], shapes)
        square, stack = timm_files.grid(shapes), encoder_layers.timm_stack(vision["timm_model_name"], shapes)
        has_class = timm_files.has_class(shapes)
    else:
        rows = native_towers.rows(inner, vision)
        shapes = _shapes(rows)
        native_towers.check(shapes, vision, name, file)
        size_of_token, square, stack = native_towers.measure(vision), None, encoder_layers.open_clip_stack(vision)
        has_class = stack is not None
    width, stride = encoder_layers.at_layer(layer, stack, size_of_token, name=name, where=where)
    config |= stated_grid(size, stride, square, stack)
    return _Tower(config, _encoder_rows(rows), width, has_class, grid_of(size, stride, square), file)


def _timm(name: str, tensors: Mapping[str, TensorEntry], file: Path, where: str, layer: int) -> _Tower:
    rows = timm_files.rows([(entry, key, "") for key, entry in tensors.items()], trunk=False)
    prepare = timm_files.preprocessing(name, file)
    config = {"library": "timm", "architecture": name, "tower": {"name": name}, "preprocess": prepare}
    shapes = _shapes(rows)
    square, stack = timm_files.grid(shapes), encoder_layers.timm_stack(name, shapes)
    width, stride = encoder_layers.at_layer(layer, stack, timm_files.measure(name, shapes), name=name, where=where)
    size = _pair(prepare["size"], file) if prepare else None
    config |= stated_grid(size, stride, square, stack)
    grid = square or grid_of(size, stride, None)
    return _Tower(config, _encoder_rows(rows), width, timm_files.has_class(shapes), grid, file)


def _transformers(name: str, location: str, relative_to: Path, layer: int) -> _Tower:
    checkpoint = open_checkpoint(name, location, revision=None, relative_to=relative_to)
    where = checkpoint.folder / "config.json"
    tower = tower_types.tower_config(checkpoint.config, where)
    kind = checkpoint.config["model_type"]
    wrapper = tower_types.TOWER_TYPES[kind].wrapper
    wrapped = bool(wrapper) and any(key.startswith(wrapper) for key in checkpoint.tensors)
    rows = [(entry, *tower_types.place(key, kind, wrapped)) for key, entry in checkpoint.tensors.items()]
    shapes = _shapes(rows)
    tower_types.check(tower, shapes, where)
    stack = encoder_layers.transformers_stack(tower, shapes)
    width, stride = encoder_layers.at_layer(
        layer, stack, tower_types.measure(tower, shapes), name=tower["model_type"], where=f"vision.{name}"
    )
    prepare = checkpoint.folder / "preprocessor_config.json"
    if not prepare.is_file():
        raise CheckpointError(
            "holds no preprocessor_config.json, so how it wants images prepared is not known", where=checkpoint.folder,
            hint="copy it from the encoder's own repository",
        )  # fmt: skip
    size = tower_types.image_size(strict_json.read_object(prepare, max_bytes=1 << 20), prepare)
    config = {
        "library": "transformers", "architecture": tower["model_type"], "tower": tower,
        "preprocess": {"size": list(size)}, **stated_grid(size, stride, None, stack),
    }  # fmt: skip
    if grid := grid_of(size, stride, None):
        tower_types.check_size(tower, shapes, grid, prepare)
    has_class = tower_types.TOWER_TYPES[tower["model_type"]].has_class
    return _Tower(config, _encoder_rows(rows), width, has_class, grid, checkpoint.folder, checkpoint)


def _encoder_rows(placed: Iterable[tuple[TensorEntry, str | None, str]]) -> tuple[Row, ...]:
    return tuple(Row(entry, f"encoder.{name}" if name else None, why) for entry, name, why in placed)


def _shapes(placed: Iterable[tuple[TensorEntry, str | None, str]]) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for entry, name, _ in placed if name}


def _check_rows(tower: _Tower) -> None:
    used: dict[str, str] = {}
    for row in tower.rows:
        if row.name is None:
            continue
        if row.name in used:
            raise CheckpointError(
                f"tensors {used[row.name]!r} and {row.entry.name!r} are the same one", where=tower.where
            )
        used[row.name] = row.entry.name
        if row.entry.dtype not in FLOAT_BYTES and not row.name.endswith(_COUNTER):
            raise CheckpointError(
                f"tensor {row.entry.name!r} has dtype {row.entry.dtype}, not floats", where=tower.where
            )
    if not used:
        raise CheckpointError("holds no tensor of a vision tower", where=tower.where)


def _pair(size: Any, where: object) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise CheckpointError(f"image_size is {size!r}, not a number of pixels", where=where)
    return pair
