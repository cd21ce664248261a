"""The numbers of a language model, from its config, with the config class's defaults where config.json is silent."""

from collections.abc import Mapping
from typing import Any

from fuse.errors import CheckpointError
from fuse.families.family import Basis, Family, TextFamily
from fuse.families.registry import TEXTS, model_type_of, text_module
from fuse.families.rope import finite, rope_of, short

KEYS = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
}
MAX_LAYERS = 10_000
MAX_SIZE = 1 << 31
# text model_type of original-LLaVA configs, by their own model_type or by the word in their architecture
FLAT_TYPES = {"mistral": "mistral", "qwen": "qwen2", "gemma": "gemma", "phi3": "phi3"}


def text_config(config: Mapping[str, Any], family: Family, where: str) -> Mapping[str, Any]:
    """The config of the language model: an inner one, or the config itself where it is flat."""
    if not family.text:
        return config
    inner = config.get(family.text)
    if inner is None and config.get("model_type") in TEXTS:
        return config
    if inner is None:
        raise CheckpointError(f"config.json: {family.text} is missing", where=where)
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"config.json: {family.text} is {short(inner)}, not an object", where=where)
    return inner


def text_type_of(config: Mapping[str, Any], family: Family, where: str) -> str:
    """The model_type of the language model."""
    inner = text_config(config, family, where)
    if inner is not config:
        return model_type_of(inner, where) if "model_type" in inner else family.text_type
    model_type = str(config.get("model_type", ""))
    if model_type in TEXTS:
        return model_type
    words = " ".join([model_type, *map(str, config.get("architectures") or [])]).lower()
    return next((text for word, text in FLAT_TYPES.items() if word in words), family.text_type)


def defaults_of(text: TextFamily, model_type: str) -> Mapping[str, Any]:
    """The config class's defaults of the keys that we read."""
    return text.defaults[model_type]


def basis_of(config: Mapping[str, Any], family: Family, where: str) -> Basis:
    """What must agree between members of one base.

    Raises CheckpointError for numbers that are not positive whole numbers of a sane size.
    """
    inner, model_type = text_config(config, family, where), text_type_of(config, family, where)
    text = text_module(model_type, where)
    defaults = defaults_of(text, model_type)

    def value(field: str) -> Any:
        key = key_of(field)
        return inner[key] if key in inner else defaults.get(key)

    def key_of(field: str) -> str:
        return text.keys.get(field, KEYS.get(field, field))

    def number(field: str, fallback: int | None = None, limit: int = MAX_SIZE) -> int:
        key, found = key_of(field), value(field)
        if found is None:  # null, here or in the class: derived from other numbers, else the class's
            found = defaults.get(key) if fallback is None else fallback
        if type(found) is not int or not 0 < found < limit:
            raise CheckpointError(
                f"config.json: {key} is {short(found)}, not a whole number from 1 to {limit - 1:,}", where=where
            )
        return found

    def word(field: str) -> str:
        found = defaults.get(key_of(field)) if value(field) is None else value(field)
        if found is not None and not isinstance(found, str):
            raise CheckpointError(f"config.json: {key_of(field)} is {short(found)}, not a word", where=where)
        return str(found)

    def symbol(name: str) -> int:
        key, _, other = text.symbols[name].partition("|")
        return number(key, number(other) if other else None, MAX_LAYERS if name in text.depth else MAX_SIZE)

    hidden, heads = number("hidden_size"), number("heads")
    if value("head_dim") is None and hidden % heads:
        raise CheckpointError(f"config.json: hidden size {hidden} does not divide by {heads} heads", where=where)
    theta, scaling = rope_of(inner, defaults, where)
    eps, layers = value("norm_eps"), number("layers", limit=MAX_LAYERS)
    return Basis(
        family=text.name, hidden_size=hidden, layers=layers, heads=heads,
        kv_heads=number("kv_heads", heads), head_dim=number("head_dim", hidden // heads),
        intermediate_size=number("intermediate_size", 4 * hidden), vocab_size=number("vocab_size"),
        norm_eps=None if eps is None else finite(key_of("norm_eps"), eps, where),
        rope_theta=theta, rope_scaling=scaling, activation=word("activation"),
        tied=_tied(config, inner, family, defaults, where),
        sizes={name: symbol(name) for name in text.symbols},
    )  # fmt: skip


def _tied(
    config: Mapping[str, Any], inner: Mapping[str, Any], family: Family, defaults: Mapping[str, Any], where: str
) -> bool:
    """Language models read their own `tie_word_embeddings`; a multimodal class the outer one, or as `ties` says."""
    own = _switch(inner, bool(defaults.get("tie_word_embeddings", False)), where)
    if inner is config:
        return own
    outer = _switch(config, family.tied, where)
    return {"outer": outer, "text": own, "either": outer or own, "never": False}[family.ties]


def _switch(config: Mapping[str, Any], default: bool, where: str) -> bool:
    found = config.get("tie_word_embeddings", default)
    if found is not None and not isinstance(found, bool):
        raise CheckpointError(f"config.json: tie_word_embeddings is {short(found)}, not true or false", where=where)
    return bool(found)
