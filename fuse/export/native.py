"""A fused folder as a folder of a class that transformers has: its one branch's class, or its language model's.

Keys are renamed back, grafts that fold are folded, placeholders leave the tokenizer and the end of the embedding. What
has no place in such a class is refused, every reason in one message: nothing is left out to make a folder fit.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fuse import families
from fuse.checkpoint import INDEX
from fuse.digests import CARD, RECORD, Digest, sha256_of, small_files
from fuse.errors import CheckpointError, RecipeError
from fuse.export.cards import native_card
from fuse.export.folders import Opened, check_target, opened
from fuse.export.fused_parts import Parts, take_apart
from fuse.export.intact import intact
from fuse.export.native_check import check_native, class_of, image_word
from fuse.export.native_files import kept_rows, native_config, write_small
from fuse.export.native_grafts import Folds, folds_of, routes_of
from fuse.export.native_why import why_no_class
from fuse.families.family import Family, Part
from fuse.folded import fold_rows
from fuse.partial import new_folder
from fuse.plan import Row, Source, shard
from fuse.safetensors_header import TensorEntry
from fuse.small_files import json_bytes, write_json
from fuse.verify.headers import check_described

SHARD = 5 * 10**9
FUSED_ONLY = ("branches", "grafts", "sha256", "marks", "files", "code")  # tables of fuse.json that are no longer so


def export_native(
    folder: Path, out: Path, *, force: bool = False, progress: Callable[[int], None] = lambda _: None
) -> str:  # fmt: skip
    """Write `out`, a folder that transformers loads without `fuse`; the name of its class.

    progress: called with the bytes written since its last call. Values are the folder's own; those of folded tensors
    are computed in float32 or wider and rounded once, to the dtype that they were stored in. Raises RecipeError with
    every reason where no class of transformers holds the folder, and for a target that cannot be written;
    CheckpointError for a folder that is not as fuse wrote it, and where the result would not load or would write an
    image in another way than the folder does.
    """
    source = opened(folder)
    if not source.is_fused:
        told = f"transformers has the class of {source.config['model_type']!r} itself: the folder is native as it is"
        raise RecipeError(told, where=folder)
    check_described(folder)
    check_target(folder, out, force=force)
    parts = take_apart(folder, source.config)
    folds = folds_of(folder, source.config, parts)
    if reasons := [*why_no_class(source.config), *folds.reasons]:
        raise _refused(folder, reasons)
    name = class_of(source)
    rows = kept_rows(source.config)
    config = native_config(source, rows, folds.changes, name)
    written = native_rows(source, parts, folds, config, rows)
    shards = shard(written, SHARD)
    with new_folder(out, "export", force=force) as made:
        with intact(source):
            digests = _weights(source, parts, folds, written, shards, made, progress)
        write_small(source, made, config, image_word(source))
        _finish(source, folds, name, written, shards, digests, made)
        check_native(source, made)
    return name


def _refused(folder: Path, reasons: list[str]) -> RecipeError:
    start = "no class of transformers computes what it does"
    if len(reasons) == 1:
        return RecipeError(f"{start}: {reasons[0]}", where=folder, hint="--to portable runs anywhere")
    more = [f"  {number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return RecipeError(f"{start}, for {len(reasons)} reasons", where=folder, hint="--to portable runs anywhere",
                       more=more)  # fmt: skip


def native_rows(source: Opened, parts: Parts, folds: Folds, config: Mapping[str, Any], rows: int) -> list[Row]:
    """A row for every tensor under the name that the class's checkpoints have; folds where grafts are folded."""
    family = families.family_of(config, str(source.folder))
    tables = {parts.text.embedding, parts.text.head}
    cut = {name: _first(entry, rows) if name in tables else entry for name, entry in parts.language.items()}
    spoken = [_copy(family, "language", name, entry) for name, entry in cut.items()]
    made = fold_rows(spoken, folds.folded)
    for branch in parts.branches.values():
        made += [_copy(family, _part(family, name, entry), name, entry) for name, entry in branch.items()]
    _check_names(source, config, made)
    return made


def _first(entry: TensorEntry, rows: int) -> TensorEntry:
    """The first rows of a stored table."""
    row = entry.nbytes // entry.shape[0]
    return replace(entry, shape=(rows, *entry.shape[1:]), end=entry.begin + rows * row)


def _copy(family: Family, part: Part, canonical: str, entry: TensorEntry) -> Row:
    name = next(
        prefix + canonical.removeprefix(inner)
        for prefix, (of, inner) in family.prefixes.items() if of == part and canonical.startswith(inner)
    )  # fmt: skip
    return Row(name, "copy", canonical, part, entry.shape, entry.dtype, (Source("the folder", entry),))


def _part(family: Family, canonical: str, entry: TensorEntry) -> Part:
    """Which part of its family an eye's tensor is: that of the longest prefix that fits."""
    places = [(inner, part) for part, inner in family.prefixes.values() if part != "language"]
    fits = [(len(inner), part) for inner, part in places if canonical.startswith(inner)]
    if not fits:
        raise CheckpointError(f"tensor {entry.name!r} is no part of a {family.model_type}", where=entry.file)
    return cast(Part, max(fits)[1])


def _check_names(source: Opened, config: Mapping[str, Any], made: list[Row]) -> None:
    """The names lead back to the tensors that they were made of."""
    placed = families.places(config, [row.name for row in made], str(source.folder))
    for row in made:
        place = placed[row.name]
        if place is None or (place.part, place.canonical) != (row.part, row.canonical):
            raise CheckpointError(f"tensor {row.canonical!r} has no name in a {config['model_type']}",
                                  where=source.folder)  # fmt: skip


def _weights(
    source: Opened, parts: Parts, folds: Folds, rows: list[Row], shards: tuple[tuple[str, tuple[int, ...]], ...],
    made: Path, progress: Callable[[int], None],
) -> dict[str, Digest]:  # fmt: skip
    from fuse.engine.execute import execute
    from fuse.engine.read import Reader

    with Reader() as reader:
        constants = routes_of(folds, rows, reader, source.config, parts)
    return execute(rows, shards, made, progress, constants)


def _finish(
    source: Opened, folds: Folds, name: str, rows: list[Row], shards: tuple[tuple[str, tuple[int, ...]], ...],
    digests: Mapping[str, Digest], made: Path,
) -> None:  # fmt: skip
    """Card, record and index."""
    weight_map = {rows[i].name: file for file, numbers in shards for i in numbers}
    total = {"total_size": sum(row.nbytes for row in rows)}
    index = json_bytes({"metadata": total, "weight_map": dict(sorted(weight_map.items()))})
    told = {key: value for key, value in source.record.told.items() if key not in FUSED_ONLY}
    told["exported"] = {
        "to": "native", "class": name, "from": dict(source.record.sha256),
        "folded": [{"name": o.graft.name, "kind": o.graft.kind, "scale": o.graft.scale, "changes": dict(o.changes)}
                   for o, _ in folds.folded],
        "not_heard": list(folds.silent),
    }  # fmt: skip
    told["sha256"] = {file: digest.sha256 for file, digest in digests.items()}
    told["marks"] = {file: digest.marks for file, digest in digests.items() if digest.marks}
    told["files"] = small_files(made)
    if len(shards) > 1:
        told["files"][INDEX] = sha256_of(index)
    write_json(made / RECORD, told)
    (made / CARD).write_bytes(native_card(source, made, told).encode())
    if len(shards) > 1:
        (made / INDEX).write_bytes(index)
