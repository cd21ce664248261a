"""Values of a config that decide no shape, and that a loader stumbles over where they are of another kind."""

import re
from collections.abc import Mapping
from typing import Any

from fuse.errors import CheckpointError
from fuse.families.rope import short

DTYPES = ("float64", "float32", "bfloat16", "float16", "auto")
MAX_POSITIONS = 1 << 40
_WORD = re.compile(r"[A-Za-z_]\w{0,127}")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def check_plain(config: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError for a dtype, class, token or number of positions that is none; null always passes."""
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        if value is not None and (not isinstance(value, str) or value.removeprefix("torch.") not in DTYPES):
            told = f"config.json: {key} is {short(value)}, and fuse writes {', '.join(DTYPES[:-1])}"
            raise CheckpointError(told, where=where)
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(_is_word(name) for name in names)):
        raise CheckpointError(f"config.json: architectures is {short(names)}, not a list of classes", where=where)
    most = config.get("max_position_embeddings")
    if most is not None and (type(most) is not int or not 0 < most < MAX_POSITIONS):
        told = f"config.json: max_position_embeddings is {short(most)}, not a whole number from 1 on"
        raise CheckpointError(told, where=where)
    for key in _TOKENS:
        value = config.get(key)
        if not all(one is None or type(one) is int for one in (value if isinstance(value, list) else [value])):
            raise CheckpointError(f"config.json: {key} is {short(value)}, not a token's number", where=where)


def _is_word(name: Any) -> bool:
    return isinstance(name, str) and _WORD.fullmatch(name) is not None
