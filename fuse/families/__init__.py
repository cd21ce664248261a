"""Which key of a checkpoint is which part, and what its canonical name is. Tables only; neither torch nor transformers.

`places` answers for the keys of a folder, `basis_of` for the numbers that merged members must share, `check_language`
compares what is stored with what the config promises.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fuse.errors import CheckpointError
from fuse.families.basis import basis_of, defaults_of, text_config, text_type_of
from fuse.families.family import Basis, Family, Part, Place, TextFamily
from fuse.families.registry import family_of, text_module
from fuse.families.rope import short
from fuse.families.switches import check_switches
from fuse.families.symbols import evaluate

__all__ = ["Basis", "Family", "Place", "TextFamily", "basis_of", "check_language", "family_of", "language_shapes",
           "places", "text_config", "text_family_of"]  # fmt: skip

WRAPPERS = {
    "base_model.model.": "these are the names of a LoRA adapter; merge it into its base first",
    "_orig_mod.": "these are the names of a compiled model; save the model that was compiled",
    "module.": "these are the names of a DataParallel wrapper; save its `.module`",
}
# what GPTQ, AWQ, fp8, compressed-tensors and bitsandbytes store beside or in place of a weight
QUANTISED = re.compile(
    r".*\.(qweight|qzeros|scales|g_idx|SCB|weight_packed|weight_shape|weight_zero_point|(weight|input|output)_scale(_inv)?"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*))"
)


def text_family_of(config: Mapping[str, Any], family: Family, where: str) -> TextFamily:
    """The table of the checkpoint's language model."""
    return text_module(text_type_of(config, family, where), where)


def places(config: Mapping[str, Any], keys: Sequence[str], where: str) -> dict[str, Place | None]:
    """Where each key belongs; None for a buffer that is recomputed when a model is built.

    Raises CheckpointError for a key that no table explains, and for two keys with one canonical name.
    """
    family = family_of(config, where)
    text = text_family_of(config, family, where)
    prefixes = sorted(family.prefixes.items(), key=lambda item: -len(item[0]))
    found: dict[str, Place | None] = {}
    owners: dict[tuple[Part, str], str] = {}
    for key in keys:
        place = found[key] = _place(key, family, text, prefixes, where)
        if place is None:
            continue
        other = owners.setdefault((place.part, place.canonical), key)
        if other != key:
            raise CheckpointError(
                f"tensors {other!r} and {key!r} are the same part of a {family.model_type}", where=where
            )
    return found


def _place(
    key: str, family: Family, text: TextFamily, prefixes: Sequence[tuple[str, tuple[Part, str]]], where: str
) -> Place | None:
    if any(_compiled(p).fullmatch(key) for p in family.buffers):
        return None
    for prefix, (part, canonical) in prefixes:
        if not _begins(key, prefix):
            continue
        name = canonical + key[len(prefix) :]
        if part != "language":
            return Place(part, name)
        name = _renamed(name, text)
        if any(_compiled(p).fullmatch(name) for p in text.buffers):
            return None
        if _pattern(text).fullmatch(name):
            return Place(part, name)
    raise _unknown(key, family, text, where)


def _begins(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and (prefix in (key, "") or prefix.endswith("."))


def _renamed(name: str, text: TextFamily) -> str:
    for prefix, canonical in text.prefixes.items():
        if name.startswith(prefix):
            return canonical + name[len(prefix) :]
    return name


def _unknown(key: str, family: Family, text: TextFamily, where: str) -> CheckpointError:
    for prefix, hint in WRAPPERS.items():
        if key.startswith(prefix) or (".lora_" in key and "LoRA" in hint):
            return CheckpointError(
                f"tensor {key!r} is not part of a {family.model_type} checkpoint", where=where, hint=hint
            )
    if QUANTISED.fullmatch(key):
        return CheckpointError(
            f"tensor {key!r} is not part of a {family.model_type} checkpoint", where=where,
            hint="these are the names of quantised weights; merge the unquantised checkpoint",
        )  # fmt: skip
    if family.text == "" and family.vision == "":
        return CheckpointError(f"tensor {key!r} is not part of a {text.name} language model", where=where)
    return CheckpointError(
        f"tensor {key!r} is not part of a {family.model_type} checkpoint with a {text.name} language model",
        where=where,
        hint=f"known beginnings: {', '.join(sorted(p for p in family.prefixes if p))}",
    )


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _pattern(text: TextFamily) -> re.Pattern[str]:
    return _pattern_of(text.name, tuple(text.tensors) + tuple(text.optional), tuple(text.depth))


@lru_cache(maxsize=64)
def _pattern_of(_name: str, names: tuple[str, ...], counters: tuple[str, ...]) -> re.Pattern[str]:
    alternatives = []
    for name in names:
        pattern = re.escape(name)
        for counter in counters:
            pattern = pattern.replace(re.escape("{" + counter + "}"), r"(?:0|[1-9]\d*)")
        alternatives.append(pattern)
    return re.compile("|".join(alternatives))


def language_shapes(
    config: Mapping[str, Any], where: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Every tensor that the config promises for the language model with its shape: required, and optional."""
    family = family_of(config, where)
    text, basis = text_family_of(config, family, where), basis_of(config, family, where)
    inner = text_config(config, family, where)
    values = symbol_values(basis)
    defaults = defaults_of(text, text_type_of(config, family, where))
    inner = {**defaults, **{key: value for key, value in inner.items() if value is not None}}
    layers = {counter: layer_numbers(inner, basis, counter, key, where) for counter, key in text.depth.items()}
    return _expand(text.tensors, values, layers), _expand(text.optional, values, layers)


def symbol_values(basis: Basis) -> dict[str, int]:
    """The numbers behind the symbols of the shape tables."""
    return {
        "D": basis.hidden_size, "V": basis.vocab_size, "F": basis.intermediate_size, "H": basis.head_dim,
        "G": basis.heads, "Q": basis.heads * basis.head_dim, "K": basis.kv_heads * basis.head_dim, **basis.sizes,
    }  # fmt: skip


def layer_numbers(config: Mapping[str, Any], basis: Basis, counter: str, key: str, where: str) -> Sequence[int]:
    """The layers that `{counter}` runs over: all of them, those the config lists, or (`!key`) those it does not."""
    plain = key.removeprefix("!")
    value = config.get(plain)
    if not key.startswith("!") and not isinstance(value, list):
        return range(basis.sizes.get(counter, basis.layers))
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise CheckpointError(f"config.json: {plain} is {short(value)}, not a list of layers", where=where)
    listed = set(value)  # numbers beyond the depth are left unread, as transformers does
    return [n for n in range(basis.layers) if (n in listed) != key.startswith("!")]


def _expand(
    table: Mapping[str, str], values: Mapping[str, int], layers: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in table.items():
        sizes = tuple(evaluate(symbol, values) for symbol in shape.split())
        counter = next((c for c in layers if "{" + c + "}" in name), None)
        if counter is None:
            shapes[name] = sizes
        else:
            before, after = name.split("{" + counter + "}")
            shapes |= {f"{before}{n}{after}": sizes for n in layers[counter]}
    return shapes


def check_language(config: Mapping[str, Any], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare the stored language tensors (canonical name to shape) with the config.

    Raises CheckpointError for a tensor that is missing, of another shape, or in a layer that the config does not have.
    The head may be missing where it is tied to the embedding.
    """
    family = family_of(config, where)
    text, basis = text_family_of(config, family, where), basis_of(config, family, where)
    required, optional = language_shapes(config, where)
    if basis.tied and text.head not in found:
        required.pop(text.head, None)
    for name, shape in required.items():
        if name not in found:
            raise CheckpointError(
                f"tensor {name!r} is missing: config.json promises {basis.layers} layers of {text.name}", where=where
            )
        _check_shape(name, found[name], shape, text, where)
    for name, shape in found.items():
        if name in required:
            continue
        if name not in optional:
            raise CheckpointError(
                f"tensor {name!r} belongs to none of the {basis.layers} layers of config.json", where=where
            )
        _check_shape(name, shape, optional[name], text, where)
    _check_whole(text, optional, found, where)
    rows = {_row_of(name, text.optional) for name in found if name in optional}
    check_switches(text, text_config(config, family, where), rows, where)


def _check_whole(
    text: TextFamily, optional: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """An optional tensor that one layer has, all layers have; of the groups of `one_of`, exactly one is there."""
    used = {row for name in found if name in optional and (row := _row_of(name, text.optional))}
    for name in optional:
        if name not in found and _row_of(name, text.optional) in used:
            raise CheckpointError(f"tensor {name!r} is missing, and other layers have it", where=where)
    stored = {name.rsplit(".", 2)[-2] for name in found if name in optional}
    groups = [set(group) for group in text.one_of]
    if groups and stored & set().union(*groups) not in groups:
        told = " or ".join(" and ".join(group) for group in text.one_of)
        raise CheckpointError(
            f"a {text.name} language model stores {told} in every layer, and one kind only", where=where
        )


def _check_shape(name: str, found: tuple[int, ...], promised: tuple[int, ...], text: TextFamily, where: str) -> None:
    if tuple(found) != promised:
        rows = {**text.tensors, **text.optional}
        symbols = rows.get(_row_of(name, rows), "")
        raise CheckpointError(
            f"tensor {name!r} has shape {list(found)}, but config.json makes it {list(promised)}"
            + (f" ({symbols})" if symbols else ""),
            where=where,
        )


def _row_of(name: str, table: Mapping[str, str]) -> str:
    """The row of a table that a name belongs to: `name` with its layer number replaced by a counter."""
    bare = re.sub(r"\.\d+\.", ".{}.", name, count=1)
    return next((row for row in (name, *table) if row in table and re.sub(r"\{\w\}", "{}", row) in (name, bare)), "")
