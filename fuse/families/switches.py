"""Keys of a config that switch tensors on: `attention_bias` and its like."""

import re
from collections.abc import Mapping, Set
from typing import Any

from fuse.errors import CheckpointError
from fuse.families.family import TextFamily
from fuse.families.rope import short


def check_switches(text: TextFamily, config: Mapping[str, Any], stored: Set[str], where: str) -> None:
    """Optional tensors are stored where the config switches them on, and only there.

    stored: rows of the family's table, with counters. A key that is not stated is off, as in the classes. Raises
    CheckpointError where config and weights disagree: transformers would begin such tensors anew, or leave them out.
    """
    for key, names in text.switches.items():
        value = config.get(key)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"config.json: {key} is {short(value)}, not true or false", where=where)
        there = [name for name in names if name in stored]
        if value and not there:
            told = f"config.json: {key} is true, and no tensor {_first(names[0])!r} is stored"
            raise CheckpointError(told, where=where)
        if there and not value:
            is_off = "false" if value is False else "not stated"
            told = f"config.json: {key} is {is_off}, and tensor {_first(there[0])!r} is stored"
            raise CheckpointError(told, where=where)


def _first(row: str) -> str:
    """The tensor of the first layer."""
    return re.sub(r"\{\w\}", "0", row)
