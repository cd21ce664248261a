"""Rotary positions of a config, old style (`rope_theta`, `rope_scaling`) or new (`rope_parameters`), as two values."""

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from fuse.errors import CheckpointError

# M-RoPE is plain RoPE for text; the sections only say which of the three indices turns which channel.
_UNSCALED = {"default", "mrope"}
_RENAMED = {"su": "longrope"}
_FROM_LENGTH = {"llama3", "yarn", "longrope"}
_NOT_SCALING = {"type", "rope_type", "rope_theta", "mrope_section", "mrope_interleaved"}
_PER_LAYER = {"full_attention", "sliding_attention"}


def rope_of(config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> tuple[float | None, str]:
    """(theta, canonical JSON of the scaling); (None, "") for a model without rotary positions.

    A Gemma 3 config gives each kind of layer its own rotation: theta is then that of the full-attention layers, and
    the JSON holds both kinds.
    """
    if "rope_theta" not in defaults:
        return None, ""
    given = config.get("rope_parameters")
    old = config.get("rope_scaling")
    for key, value in (("rope_parameters", given), ("rope_scaling", old)):
        if value is not None and not isinstance(value, Mapping):
            raise CheckpointError(f"config.json: {key} is {short(value)}, not a mapping", where=where)
    parameters = dict(old or given or {})  # transformers, too, takes the old key first
    if "rope_local_base_freq" in defaults:
        return _by_layer(config, defaults, parameters, where)
    return _theta(parameters, config, defaults, where), _scaling(parameters, config, defaults, where)


def _by_layer(
    config: Mapping[str, Any], defaults: Mapping[str, Any], parameters: dict[str, Any], where: str
) -> tuple[float, str]:
    if _PER_LAYER & set(parameters):
        full, sliding = (_mapping(parameters.get(f"{kind}_attention"), where) for kind in ("full", "sliding"))
    else:
        full, sliding = parameters, {}
    local = sliding.get("rope_theta")
    local = _or_default("rope_local_base_freq", config, defaults) if local is None else local
    theta = _theta(full, config, defaults, where)
    return theta, _dump(
        {
            "full_attention": {"rope_theta": theta, **_scaled(full, config, defaults, where)},
            "sliding_attention": {
                "rope_theta": finite("rope_theta", local, where),
                **_scaled(sliding, {}, defaults, where),
            },
        }
    )


def _theta(parameters: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> float:
    theta = parameters.get("rope_theta")
    return finite("rope_theta", _or_default("rope_theta", config, defaults) if theta is None else theta, where)


def _or_default(key: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    value = config.get(key)
    return defaults[key] if value is None else value


def _scaling(parameters: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> str:
    scaled = _scaled(parameters, config, defaults, where)
    return _dump(scaled) if scaled else ""


def _scaled(
    parameters: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any], where: str
) -> dict[str, Any]:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(kind, str):
        raise CheckpointError(f"config.json: rope_type is {short(kind)}, not a word", where=where)
    values = dict(parameters)
    values.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    if values["partial_rotary_factor"] == 1:
        values["partial_rotary_factor"] = None
    if kind in _UNSCALED:
        values = {"partial_rotary_factor": values["partial_rotary_factor"]}
    elif kind in _FROM_LENGTH or kind in _RENAMED:
        values["original_max_position_embeddings"] = _trained_length(values, config, defaults)
    numbers = {
        key: _plain(key, value, where) for key, value in values.items() if key not in _NOT_SCALING and value is not None
    }
    return numbers if kind in _UNSCALED else {"rope_type": _RENAMED.get(kind, kind), **numbers}


def _trained_length(parameters: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """The length before scaling: Phi-3 states it outside, others inside, and some leave it out."""
    key = "original_max_position_embeddings"
    found = (config.get(key), defaults.get(key), parameters.get(key), config.get("max_position_embeddings"))
    return next((value for value in found if value is not None), None)


def _plain(key: str, value: Any, where: str) -> Any:
    """Numbers as floats, so that 8 and 8.0 agree; lists of numbers likewise; words and switches as they are."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, list | tuple):
        return [finite(key, item, where) for item in value]
    return finite(key, value, where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: rope_parameters holds {short(value)}, not a mapping", where=where)
    return value


def finite(key: str, value: Any, where: str) -> float:
    """The value as a float; CheckpointError for anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise CheckpointError(f"config.json: {key} is {short(value)}, not a finite number", where=where)
    return float(value)


def short(value: Any) -> str:
    """The value as Python writes it, cut where it is long."""
    return reprlib.repr(value)


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
