"""The encoder of a branch from its files, in each library: its JSON, its tensors, and what can be read of it.

Only headers and configs are read; torch is not imported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.branches import encoder_layers, native_towers, open_clip_files, timm_files, tower_types
from fuse.branches.encoder_grid import grid_of, stated_grid
from fuse.branches.encoder_layers import Stack
from fuse.checkpoint import Checkpoint, open_checkpoint
from fuse.errors import CheckpointError
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry

_COUNTER = "num_batches_tracked"  # of batch norm, the one tensor of integers


@dataclass(frozen=True)
class Row:
    """One stored tensor. name: what it is called in the branch, or None when it is not used, and then why."""

    entry: TensorEntry
    name: str | None
    reason: str = ""


@dataclass(frozen=True)
class Wanted:
    """Which of a tower is read: patch tokens of `layer`; or with its head, where it has one."""

    layer: int = encoder_layers.LAST
    head: bool = False


@dataclass(frozen=True)
class Tower:
    """A tower from files.

    config: its part of the branch's JSON. width: size of one token at the layer that is read, None where only the built
    tower knows. grid: (h, w) of the patches. stack: its layers, None where they cannot be counted. pooled: numbers of a
    pooled feature, where the files hold the head that gives it. normed: the class token passes a last norm. projects:
    all tokens can pass that norm and the head. prefix: tokens before the patches, None where that is not known.
    """

    config: dict[str, Any]
    rows: tuple[Row, ...]
    width: int | None
    has_class: bool
    grid: tuple[int, int] | None
    where: object
    stack: Stack | None
    checkpoint: Checkpoint | None = None
    pooled: int | None = None
    normed: bool = False
    projects: bool = False
    prefix: int | None = None


def open_clip(text: str, tensors: Mapping[str, TensorEntry], file: Path, where: str, wanted: Wanted) -> Tower:
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
    plain, projects = "timm_model_name" not in vision, False
    head = wanted.head and (not plain or native_towers.has_head(vision))
    if not plain:
        rows = timm_files.rows(inner, trunk=True, head=head)
        shapes = {name.removeprefix("trunk."): shape for name, shape in _shapes(rows).items()}
        size_of_token = timm_files.measure(vision["timm_model_name"], shapes)
        square, stack = timm_files.grid(shapes), encoder_layers.timm_stack(vision["timm_model_name"], shapes)
        has_class = timm_files.has_class(shapes)
        normed, prefix = has_class and "norm.weight" in shapes, timm_files.prefix(shapes)
    else:
        rows = native_towers.rows(inner, vision, head)
        shapes = _shapes(rows)
        native_towers.check(shapes, vision, name, file, model["embed_dim"] if head else 0)
        size_of_token, square, stack = native_towers.measure(vision), None, encoder_layers.open_clip_stack(vision)
        has_class = stack is not None
        normed = projects = has_class and native_towers.has_last_norm(vision)
        prefix = int(has_class)
    width, stride = encoder_layers.at_layer(wanted.layer, stack, size_of_token, name=name, where=where)
    config |= stated_grid(size, stride, square, stack)
    return Tower(
        config, _encoder_rows(rows), width, has_class, grid_of(size, stride, square), file, stack,
        pooled=model["embed_dim"] if head else None, normed=normed, projects=projects, prefix=prefix,
    )  # fmt: skip


def timm(name: str, tensors: Mapping[str, TensorEntry], file: Path, where: str, wanted: Wanted) -> Tower:
    rows = timm_files.rows([(entry, key, "") for key, entry in tensors.items()], trunk=False)
    prepare = timm_files.preprocessing(name, file)
    config = {"library": "timm", "architecture": name, "tower": {"name": name}, "preprocess": prepare}
    shapes = _shapes(rows)
    square, stack = timm_files.grid(shapes), encoder_layers.timm_stack(name, shapes)
    width, stride = encoder_layers.at_layer(
        wanted.layer, stack, timm_files.measure(name, shapes), name=name, where=where
    )
    size = _pair(prepare["size"], file) if prepare else None
    config |= stated_grid(size, stride, square, stack)
    grid = square or grid_of(size, stride, None)
    has_class = timm_files.has_class(shapes)
    return Tower(
        config, _encoder_rows(rows), width, has_class, grid, file, stack,
        normed=has_class and "norm.weight" in shapes, prefix=timm_files.prefix(shapes),
    )  # fmt: skip


def transformers(name: str, location: str, relative_to: Path, wanted: Wanted) -> Tower:
    checkpoint = open_checkpoint(name, location, revision=None, relative_to=relative_to)
    where = checkpoint.folder / "config.json"
    tower = tower_types.tower_config(checkpoint.config, where)
    kind = checkpoint.config["model_type"]
    wrapper = tower_types.TOWER_TYPES[kind].wrapper
    wrapped = bool(wrapper) and any(key.startswith(wrapper) for key in checkpoint.tensors)
    rows = [(entry, *tower_types.place(key, kind, wrapped, wanted.head)) for key, entry in checkpoint.tensors.items()]
    shapes = _shapes(rows)
    head = shapes.get(f"{tower_types.HEAD}.weight", ())
    tower_types.check(tower, shapes, where)
    stack = encoder_layers.transformers_stack(tower, shapes)
    width, stride = encoder_layers.at_layer(
        wanted.layer, stack, tower_types.measure(tower, shapes), name=tower["model_type"], where=f"vision.{name}"
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
    row = tower_types.TOWER_TYPES[tower["model_type"]]
    projects = len(head) == 2 and head[1] == width and row.class_norm is not None
    return Tower(
        config, _encoder_rows(rows), width, row.has_class, grid, checkpoint.folder, stack, checkpoint,
        pooled=head[0] if projects else None, normed=row.class_norm is not None, projects=projects,
        prefix=tower_types.prefix_tokens(tower),
    )  # fmt: skip


def _encoder_rows(placed: Iterable[tuple[TensorEntry, str | None, str]]) -> tuple[Row, ...]:
    return tuple(Row(entry, f"encoder.{name}" if name else None, why) for entry, name, why in placed)


def _shapes(placed: Iterable[tuple[TensorEntry, str | None, str]]) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for entry, name, _ in placed if name}


def check_rows(tower: Tower) -> None:
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
