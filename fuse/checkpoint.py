"""A checkpoint folder: its config, its tensors by name with dtype, shape and byte range. Weights are not read."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse import strict_json
from fuse.code_keys import mistake_in
from fuse.errors import CheckpointError, RecipeError, short
from fuse.folder_headers import header_of, headers
from fuse.folder_links import check_links, inside
from fuse.safetensors_header import MAX_NAME, TensorEntry
from fuse.stores.address import is_store

if TYPE_CHECKING:
    from fuse.repository import Repository

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[\w.-]{1,200}\.safetensors")
MAX_SHARDS = 10_000  # the largest models have some hundreds
ADAPTED = "a recipe with the member {base: MODEL, adapter: FOLDER} makes the model"
LEGACY = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder. `origin` is how the recipe named it, `revision` the commit it was read at ("" if local)."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    origin: str
    revision: str = ""
    repository: "Repository | None" = None  # where the weights still are, of a member that is elsewhere
    stored: Mapping[str, TensorEntry] | None = None  # what the folder holds, where an adapter's tensors stand in it

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The folder's own files of weights."""
        return tuple(sorted({entry.file for entry in (self.stored or self.tensors).values()}))

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.tensors.values())


def open_checkpoint(
    name: str, location: str, *, revision: str | None, relative_to: Path | None, adapted: str = ADAPTED
) -> Checkpoint:  # fmt: skip
    """Open a member by local path, hub id or address in an object store.

    Of what is elsewhere only the small files are downloaded; headers are read by ranges, and `fetch` brings the
    weights. relative_to: the recipe's folder, None where no recipe names the member. adapted: what would work where an
    adapter is named for a model. Raises RecipeError when there is no such folder, CheckpointError when it cannot be
    trusted or merged, MachineError when the hub or the store cannot be reached.
    """
    hint = "a member is the folder that holds config.json"
    folder, repository, commit = locate(location, revision, relative_to, hint)
    config_file = folder / "config.json"
    if not config_file.exists() and (folder / "adapter_config.json").exists():
        raise CheckpointError(
            "this is an adapter, not a whole checkpoint",
            where=folder,
            hint=adapted,
        )
    config = strict_json.read_object(config_file, max_bytes=16 << 20)
    check_config(config, config_file)
    return Checkpoint(name, folder, config, read_tensors(folder, repository), location, commit, repository)


def locate(
    location: str, revision: str | None, relative_to: Path | None, hint: str
) -> tuple[Path, "Repository | None", str]:  # fmt: skip
    """The folder of a local path, hub id or address, where its weights still are, and the commit ("" if local).

    Raises RecipeError when there is no such folder, with the hint where something else is there; MachineError when the
    hub or the store cannot be reached.
    """
    if is_store(location):
        from fuse.stores.members import open_store

        store = open_store(location, revision)
        return store.folder, store, store.commit
    if location.startswith("hf://"):
        from fuse.stores.hub import open_hub

        if (store := open_hub(location, revision)) is not None:
            return store.folder, store, store.commit
    if any(len(os.fsencode(part)) > 255 for part in Path(location).parts) or len(location) > 4000:
        raise RecipeError(f"{short(location)} does not exist", hint="a name in it is too long for a disk")
    path = Path(location if Path(location).is_absolute() or relative_to is None else relative_to / location)
    if location.startswith("hf://") or not path.exists():
        from fuse.hub import open_repository

        words = "a folder" if relative_to is None else "a folder, relative to the recipe,"
        folder, repository = open_repository(location.removeprefix("hf://"), revision, words)
        return folder, repository, folder.name
    if not path.is_dir():
        raise RecipeError(f"{location!r} is not a folder", hint=hint)
    if revision is not None:
        raise RecipeError(f"{location!r} is a local folder and has no revision", hint="leave `revision` out")
    check_links(path)
    return path, None, ""


def fetch(checkpoint: Checkpoint, wanted: Collection[TensorEntry] | None = None) -> None:
    """Bring the weights of a member that is elsewhere to this machine, those whose headers were planned on.

    wanted: which tensors are enough, of this checkpoint and maybe of others; of a bare hub id whole files come.
    Raises MachineError when hub or store cannot be reached, CheckpointError when the files differ from the plan.
    """
    stored = checkpoint.stored or checkpoint.tensors
    fetch_entries(checkpoint, list(stored.values()), wanted)
    if checkpoint.repository is not None and read_tensors(checkpoint.folder, checkpoint.repository) != stored:
        raise CheckpointError("the weights changed while they were read", where=checkpoint.folder)


def fetch_entries(
    checkpoint: Checkpoint, stored: Sequence[TensorEntry], wanted: Collection[TensorEntry] | None
) -> None:  # fmt: skip
    """Bring the stored tensors, or those of them that are wanted, to this machine; nothing where they are local."""
    if checkpoint.repository is None:
        return
    if wanted is not None and checkpoint.repository.etags:
        files = {entry.file for entry in stored}
        stored = [entry for entry in wanted if entry.file in files]
    checkpoint.repository.fetch(stored)


def read_tensors(folder: Path, repository: "Repository | None" = None) -> dict[str, TensorEntry]:
    """Every stored tensor of a folder by name, from one file or from the shards of its index.

    repository: where files that are not in the folder are read from, by ranges.
    """
    index, single = folder / INDEX, folder / SINGLE
    away = repository.names if repository else frozenset()
    has_single = single.exists() or SINGLE in away
    if index.exists() and has_single:
        raise CheckpointError(f"both {SINGLE} and {INDEX} are there", where=folder, hint="remove the stale one")
    if has_single:
        return header_of(folder, SINGLE, repository)
    if not index.exists():
        raise _no_weights(folder, away)
    weight_map = _weight_map(index)
    tensors: dict[str, TensorEntry] = {}
    for shard, entries in headers(folder, sorted(set(weight_map.values())), repository):
        for name, entry in entries.items():
            owner = weight_map.get(name)
            if owner != shard:
                what = f"is in {shard} but the index puts it in {owner}" if owner else f"is in {shard} but not indexed"
                raise CheckpointError(f"tensor {name!r} {what}", where=index)
            tensors[name] = entry
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(
            f"tensor {missing[0]!r} is not in {weight_map[missing[0]]} ({len(missing)} missing in all)", where=index
        )
    here = {p.name for p in folder.glob("model-*.safetensors")}
    here |= {name for name in away if fnmatchcase(name, "model-*.safetensors")}
    if stale := sorted(here - set(weight_map.values())):
        raise CheckpointError(f"shard {stale[0]!r} is in the folder but not in the index", where=index)
    return tensors


def check_handed(folder: Path) -> None:
    """A library that is handed the folder reads safetensors of it, and nothing else for weights; none is read here.

    Raises CheckpointError for a folder without safetensors, an index that names no plain files, a file that is a link
    out of the folder, and an adapter beside the config, whose weights may be a pickle.
    """
    index, single = folder / INDEX, folder / SINGLE
    if not single.exists() and not index.exists():
        raise _no_weights(folder, frozenset())
    if (folder / "adapter_config.json").exists():
        raise CheckpointError("holds adapter_config.json beside config.json, so that loaders would change its weights",
                              where=folder, hint="move one of them elsewhere")  # fmt: skip
    check_links(folder)
    for name in sorted(set(_weight_map(index).values())) if index.exists() else ():
        inside(folder, folder / name)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = strict_json.read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("weight_map is not a table of tensor names", where=index)
    if longest := [name for name in weight_map if len(name) > MAX_NAME]:
        raise CheckpointError(f"tensor name {short(longest[0])} has more than {MAX_NAME:,} characters", where=index)
    odd = [shard for shard in weight_map.values() if not isinstance(shard, str)]
    shards = set() if odd else set(weight_map.values())
    odd = odd or sorted(shard for shard in shards if not SHARD.fullmatch(shard) or ".." in shard)
    if odd:
        name = next(name for name, shard in weight_map.items() if shard == odd[0])
        told = f"shard name {short(odd[0])} of tensor {name!r} is not a plain file name"
        raise CheckpointError(told, where=index)
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"names {len(shards):,} files of weights, more than {MAX_SHARDS:,}", where=index)
    return weight_map


def _no_weights(folder: Path, away: frozenset[str]) -> CheckpointError:
    names = sorted({p.name for p in folder.iterdir()} | away)
    for pattern in LEGACY:
        if found := [name for name in names if fnmatchcase(name, pattern)]:
            return CheckpointError(
                f"holds {found[0]} but no safetensors; fuse does not read pickles and other formats",
                where=folder,
                hint="load it with transformers where you trust it, and `save_pretrained`",
            )
    return CheckpointError(f"holds neither {SINGLE} nor {INDEX}", where=folder)


def check_config(config: Mapping[str, Any], where: object) -> None:
    """Refuse configs that carry code or quantised weights, at any depth."""
    todo: list[tuple[str, Any]] = [("", config)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, list):
            todo += [(f"{path}[{i}]", v) for i, v in enumerate(value) if isinstance(v, dict | list)]
        if not isinstance(value, dict):
            continue
        for key, item in value.items():
            at = f"{path}.{key}" if path else key
            if mistake := mistake_in(key, item):
                raise CheckpointError(f"{at}{mistake}", where=where)
            if key in {"quantization_config", "compression_config"} and item:
                method = item.get("quant_method", "?") if isinstance(item, dict) else item
                raise CheckpointError(
                    f"{at}: the weights are quantised ({method})", where=where, hint="merge the unquantised checkpoint"
                )
            todo.append((at, item))


def free_bytes(folder: Path) -> int:
    """Free disk space for a file that this user would write into the folder (or its nearest existing parent)."""
    while not folder.exists():
        folder = folder.parent
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
