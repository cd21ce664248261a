"""A donor folder of a graft: graft.json says what it is and what it was cut from, graft.safetensors holds its tensors.

A LoRA folder as PEFT writes it is a donor, too. Only headers are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse import strict_json
from fuse.errors import CheckpointError, RecipeError
from fuse.grafts import lora_peft
from fuse.grafts.kinds import KINDS, files_of
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry, read_header
from fuse.suggest import did_you_mean

if TYPE_CHECKING:
    from fuse.recipe_yaml import LoadedRecipe

JSON, WEIGHTS, FORMAT = "graft.json", "graft.safetensors", 1
HOST: dict[str, tuple[type, ...]] = {  # what a host record holds, by the types of JSON
    "model": (str,), "model_type": (str,), "hidden_size": (int,), "layers": (int,), "norm": (str,),
    "norm_eps": (int, float), "embedding": (dict,),
}  # fmt: skip


@dataclass(frozen=True)
class Donor:
    """An opened donor folder.

    config: what its kind needs to build it. host: what it was cut from: `model`, `model_type`, `hidden_size`, `layers`,
    `norm`, `norm_eps`, `embedding`. tensors: by their names in the graft, which entries have too: they are read by
    their place in the file.
    """

    folder: Path
    kind: str
    config: Mapping[str, Any]
    host: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]

    @property
    def files(self) -> Any:
        return files_of(self.kind)


def donor_of(loaded: "LoadedRecipe", number: int) -> Donor:
    """The donor of a recipe's graft; errors as of `open_donor`, with the recipe's line where there is no folder."""
    try:
        return open_donor(loaded.recipe.grafts[number].from_, loaded.folder)
    except RecipeError as error:
        raise loaded.error(("grafts", number), f"{error.where}: {error.problem}", error.hint) from None


def open_donor(location: str, relative_to: Path) -> Donor:
    """Open a donor folder and compare its tensors with what its config promises.

    Raises RecipeError where there is no such folder, CheckpointError for a file that is not whole, a kind that is not
    known, and a tensor that is missing, not wanted, of another shape or not of floats.
    """
    folder = Path(location) if Path(location).is_absolute() else relative_to / location
    if not folder.is_dir():
        raise RecipeError("there is no such folder", where=folder, hint="`from` is a donor folder with graft.json")
    if (folder / lora_peft.CONFIG).is_file() and not (folder / JSON).is_file():
        return _open_peft(folder)
    if not (folder / JSON).is_file():
        hint = "`fuse import KIND FILE OUT` makes one of an official checkpoint"
        raise CheckpointError(f"holds no {JSON}", where=folder, hint=hint)
    told = strict_json.read_object(folder / JSON)
    where = folder / JSON
    if told.get("format") != FORMAT:
        raise CheckpointError(f"has format {told.get('format')!r}, and fuse reads {FORMAT}", where=where)
    kind = told.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(f"has kind {kind!r} ({did_you_mean(str(kind), KINDS)})", where=where)
    for key in ("config", "host"):
        if not isinstance(told.get(key), dict):
            raise CheckpointError(f"{key} is missing", where=where)
    _check_host(told["host"], where)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"holds no {WEIGHTS}", where=folder)
    donor = Donor(folder, kind, told["config"], told["host"], read_header(folder / WEIGHTS))
    _check(donor)
    return donor


def _open_peft(folder: Path) -> Donor:
    """A LoRA folder of PEFT; its base is known by name alone."""
    told = strict_json.read_object(folder / lora_peft.CONFIG, max_bytes=16 << 20)
    if not (folder / lora_peft.WEIGHTS).is_file():
        hint = "`fuse import llava_lora FOLDER OUT` reads an adapter_model.bin"
        raise CheckpointError(f"holds no {lora_peft.WEIGHTS}", where=folder, hint=hint)
    stored = read_header(folder / lora_peft.WEIGHTS)
    try:
        config, names = lora_peft.read_peft({key: entry.shape for key, entry in stored.items()}, told)
    except CheckpointError as error:
        raise CheckpointError(error.problem, where=folder, hint=error.hint) from None
    host = {"model": str(told.get("base_model_name_or_path") or "a base that it does not name")}
    tensors = {names[key]: replace(entry, name=names[key]) for key, entry in stored.items()}
    donor = Donor(folder, "lora", config, host, tensors)
    _check(donor)
    return donor


def _check_host(host: Mapping[str, Any], where: Path) -> None:
    """CheckpointError for a host record of other types than its writers give; what is missing or null is not known."""
    for key, types in HOST.items():
        value = host.get(key)
        if value is not None and type(value) not in types:
            raise CheckpointError(f"host: {key} is {str(value)[:60]!r}, which it cannot be", where=where)


def _check(donor: Donor) -> None:
    where = donor.folder / JSON
    try:
        wanted = donor.files.shapes(donor.config)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"config: {problem}", where=where) from None
    file = donor.folder / WEIGHTS
    for name, shape in wanted.items():
        entry = donor.tensors.get(name)
        if entry is None:
            raise CheckpointError(f"tensor {name!r} is missing, and {JSON} promises it", where=file)
        if entry.shape != tuple(shape):
            told = f"tensor {name!r} has shape {list(entry.shape)}, and {JSON} makes it {list(shape)}"
            raise CheckpointError(told, where=file)
        if entry.dtype not in FLOAT_BYTES:
            raise CheckpointError(f"tensor {name!r} has dtype {entry.dtype}, not floats", where=file)
    if extra := [name for name in donor.tensors if name not in wanted]:
        more = f" ({len(extra)} such tensors)" if len(extra) > 1 else ""
        raise CheckpointError(f"tensor {extra[0]!r} is not part of this {donor.kind}{more}", where=file)
