"""The headers of a folder's weights, its index, and its config against both. No weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import output, strict_json
from fuse.anatomy import open_member
from fuse.checkpoint import INDEX, check_config, read_tensors
from fuse.errors import CheckpointError
from fuse.safetensors_header import TensorEntry
from fuse.sizes import counted, size_text
from fuse.verify.outcome import Outcome
from fuse.verify.record import Record

MAX_CONFIG = 16 << 20


@dataclass(frozen=True)
class Weights:
    """The tensors of a folder by file, in the order of names."""

    files: Mapping[Path, tuple[TensorEntry, ...]]

    @property
    def entries(self) -> list[TensorEntry]:
        return [entry for entries in self.files.values() for entry in entries]

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def by_file(entries: Mapping[str, TensorEntry]) -> Weights:
    """Tensors by the file they lie in."""
    files: dict[Path, list[TensorEntry]] = {}
    for entry in entries.values():
        files.setdefault(entry.file, []).append(entry)
    return Weights({file: tuple(files[file]) for file in sorted(files)})


def check_headers(folder: Path, record: Record | None) -> tuple[Outcome, Weights]:
    """Headers and index agree with the files, and of a folder with a fuse.json that holds the same files.

    Raises what `read_tensors` raises; CheckpointError for an index whose total is another one, and for a file of
    weights that the index or fuse.json does not name, or that is not there.
    """
    weights = by_file(read_tensors(folder))
    names = {file.name for file in weights.files}
    if record is not None:
        for name in sorted(record.sha256.keys() - names):
            problem = "is not in the index" if (folder / name).exists() else "is missing"
            raise CheckpointError(f"{problem}, and fuse.json records it", where=folder / name)
        for name in sorted(names - record.sha256.keys()):
            raise CheckpointError("holds weights that fuse.json does not record", where=folder / name)
        for file in sorted(folder.rglob("*.safetensors")):
            if file not in weights.files:
                raise CheckpointError("holds weights that no index names", where=file)
        _check_total(folder, weights)
    return told_of(weights), weights


def told_of(weights: Weights) -> Outcome:
    """How many tensors there are."""
    tensors, files, size = len(weights.entries), len(weights.files), weights.nbytes
    told = f"{counted(tensors, 'tensor')} in {counted(files, 'file')}, {size_text(size)}"
    return Outcome(told, counts={"tensors": tensors, "files": files, "bytes": size})


def _check_total(folder: Path, weights: Weights) -> None:
    if not (folder / INDEX).exists():
        return
    metadata = strict_json.read_object(folder / INDEX).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if total != (found := sum(entry.nbytes for entry in weights.entries)):
        raise CheckpointError(f"total_size is {total!r}, and the tensors have {found:,} bytes", where=folder / INDEX)


def check_described(folder: Path) -> tuple[Outcome, dict[str, Any]]:
    """config.json describes the tensors: of a fused folder its language model, branches and grafts; else the family's.

    Returns the config too. Raises CheckpointError for the first tensor that is missing, strange or of another shape.
    """
    where = folder / "config.json"
    config = strict_json.read_object(where, max_bytes=MAX_CONFIG)
    check_config(config, where)
    if config.get("model_type") != "fuse":
        member = open_member("output", str(folder.resolve()), revision=None, relative_to=folder)
        return Outcome(f"a {member.family.model_type} with {counted(member.basis.layers, 'layer')}, every tensor in "
                       "its place"), config  # fmt: skip
    _check_fused(config, where)
    output.fused_tensors(folder)
    parts = [f"{counted(len(config[key]), word)}" for key, word in (("branches", "branch"), ("grafts", "graft"))
             if config.get(key)]  # fmt: skip
    language = config["text_config"].get("model_type", "?")
    told = f"a fused model on {language}{' with ' if parts else ''}{' and '.join(parts)}".replace("branchs", "branches")
    return Outcome(f"{told}, every tensor in its place"), config


def _check_fused(config: Mapping[str, Any], where: Path) -> None:
    """The lists of a fused config are lists of named objects."""
    if not isinstance(config.get("text_config"), dict):
        raise CheckpointError("text_config is no object", where=where)
    for key in ("branches", "grafts"):
        rows = config.get(key, [] if key == "grafts" else None)
        named = isinstance(rows, list) and all(isinstance(r, dict) and isinstance(r.get("name"), str) for r in rows)
        if not named:
            raise CheckpointError(f"{key} is no list of named objects", where=where)
