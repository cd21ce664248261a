"""Rotary positions of a config, old style (`rope_theta`, `rope_scaling`) or new (`rope_parameters`), as two values."""

import json
import math
from collections.abc import Mapping
from typing import Any

from fuse.errors import CheckpointError

# M-RoPE is plain RoPE for text; the sections only say which of the three indices turns which channel.
_UNSCALED = {"default", "mrope"}
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
            raise CheckpointError(f"config.json: {key} is {value!r}, not a mapping", where=where)
    parameters = dict(given if given is not None else old or {})
    if "rope_local_base_freq" in defaults:
        return _by_layer(config, defaults, parameters, where)
    return _theta(parameters, config, defaults, where), _scaling(parameters, config, where)


def _by_layer(
    config: Mapping[str, Any], defaults: Mapping[str, Any], parameters: dict[str, Any], where: str
) -> tuple[float, str]:
    if _PER_LAYER & set(parameters):
        full, sliding = (_mapping(parameters.get(f"{kind}_attention"), where) for kind in ("full", "sliding"))
    else:
        full, sliding = parameters, {}
    thetas = _theta(full, config, defaults, where), _number(
        "rope_theta", sliding.get("rope_theta", _or_default("rope_local_base_freq", config, defaults)), where
    )
    return thetas[0], _dump(
        {
            "full_attention": {"rope_theta": thetas[0], **_scaled(full, config, where)},
            "sliding_attention": {"rope_theta": thetas[1], **_scaled(sliding, {}, where)},
        }
    )


def _theta(
    parameters: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any], where: str
) -> float:
    theta = parameters.get("rope_theta")
    return _number("rope_theta", _or_default("rope_theta", config, defaults) if theta is None else theta, where)


def _or_default(key: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    value = config.get(key)
    return defaults[key] if value is None else value


def _scaling(parameters: Mapping[str, Any], config: Mapping[str, Any], where: str) -> str:
    scaled = _scaled(parameters, config, where)
    return _dump(scaled) if scaled else ""


def _scaled(parameters: Mapping[str, Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in _UNSCALED:
        partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        return {} if partial in (None, 1) else {"partial_rotary_factor": _number("partial_rotary_factor", partial, where)}
    numbers = {
        key: _plain(key, value, where)
        for key, value in parameters.items()
        if key not in _NOT_SCALING and value is not None and (key, value) != ("partial_rotary_factor", 1)
    }
    return {"rope_type": str(kind), **numbers}


def _plain(key: str, value: Any, where: str) -> Any:
    """Numbers as floats, so that 8 and 8.0 agree; lists of numbers likewise; words and switches as they are."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, list | tuple):
        return [_number(key, item, where) for item in value]
    return _number(key, value, where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: rope_parameters holds {value!r}, not a mapping", where=where)
    return value


def _number(key: str, value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"config.json: {key} is {value!r}, not a finite number", where=where)
    return float(value)


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
