"""Which key of a checkpoint is which part, and what its canonical name is. Tables only; neither torch nor transformers.

`places` answers for the keys of a folder, `basis_of` for the numbers that merged members must share, `check_language`
compares what is stored with what the config promises.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fuse.errors import CheckpointError
from fuse.families.basis import basis_of, text_config, text_type_of
from fuse.families.family import Basis, Family, Part, Place, TextFamily
from fuse.families.registry import family_of, text_module
from fuse.families.symbols import evaluate

__all__ = ["Basis", "Family", "Place", "TextFamily", "basis_of", "check_language", "family_of", "language_shapes",
           "places", "text_config", "text_family_of"]  # fmt: skip

WRAPPERS = {
    "base_model.model.": "these are the names of a LoRA adapter; merge it into its base first",
    "_orig_mod.": "these are the names of a compiled model; save the model that was compiled",
    "module.": "these are the names of a DataParallel wrapper; save its `.module`",
}


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
            raise CheckpointError(f"tensors {other!r} and {key!r} are the same part of a {family.model_type}", where=where)
    return found


def _place(
    key: str, family: Family, text: TextFamily, prefixes: Sequence[tuple[str, tuple[Part, str]]], where: str
) -> Place | None:
    if any(_compiled(p).fullmatch(key) for p in family.buffers):
        return None
    for prefix, (part, canonical) in prefixes:
        if not key.startswith(prefix):
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


def _renamed(name: str, text: TextFamily) -> str:
    for prefix, canonical in text.prefixes.items():
        if name.startswith(prefix):
            return canonical + name[len(prefix) :]
    return name


def _unknown(key: str, family: Family, text: TextFamily, where: str) -> CheckpointError:
    for prefix, hint in WRAPPERS.items():
        if key.startswith(prefix):
            return CheckpointError(f"tensor {key!r} is not part of a {family.model_type} checkpoint", where=where, hint=hint)
    if family.text == "" and family.vision == "":
        return CheckpointError(f"tensor {key!r} is not part of a {text.name} language model", where=where)
    return CheckpointError(
        f"tensor {key!r} is not part of a {family.model_type} checkpoint with a {text.name} language model", where=where,
        hint=f"known beginnings: {', '.join(sorted(p for p in family.prefixes if p))}",
    )  # fmt: skip


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
    value = config.get(key.lstrip("!"), None)
    if key.startswith("!") or isinstance(value, list):
        listed = value if isinstance(value, list) else []
        if not all(type(n) is int and 0 <= n < basis.layers for n in listed):
            raise CheckpointError(f"config.json: {key.lstrip('!')} {value!r} are not layers", where=where)
        return [n for n in range(basis.layers) if n not in listed] if key.startswith("!") else listed
    return range(basis.sizes.get(counter, basis.layers))


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

    Raises CheckpointError for a tensor that is missing, of another shape, or beyond the depth the config states. The
    head may be missing where it is tied to the embedding; the rows of embedding and head may differ from vocab_size
    only together with the config.
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
        if name not in optional and name != text.head:
            raise CheckpointError(f"tensor {name!r} is beyond the {basis.layers} layers of config.json", where=where)
        if name in optional:
            _check_shape(name, shape, optional[name], text, where)


def _check_shape(name: str, found: tuple[int, ...], promised: tuple[int, ...], text: TextFamily, where: str) -> None:
    if tuple(found) != promised:
        symbols = (text.tensors | text.optional).get(re.sub(r"\.\d+\.", ".{n}.", name, count=1), "")  # pyright: ignore
        raise CheckpointError(
            f"tensor {name!r} has shape {list(found)}, but config.json makes it {list(promised)}"
            + (f" ({symbols})" if symbols else ""),
            where=where,
        )
