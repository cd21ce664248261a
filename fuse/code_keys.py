"""Keys of configs that make a loader fetch code or run it: what is refused, and what is left out of outputs.

`config.json` that asks for code is refused: whoever loads the folder would run it. Everywhere else, and where a key
only chooses among kernels that a library has (`attn_implementation: sdpa`), it is left out: it is the loader's choice.
The names are those that transformers reads up to 5.23; CVE-2026-4372 and CVE-2026-5241 came through such keys.
"""

import re
from typing import Any

CODE_KEYS = {"auto_map", "trust_remote_code", "custom_pipelines", "custom_generate"}
# transformers takes attn_implementation and experts_implementation from a config with and without a line before them
KERNELS = re.compile(r"_?\w*(attn|attention|experts)_implementation\w*")
INTERNAL = "_internal"


def is_left_out(key: str) -> bool:
    """Whether a key of a config, a processor or a tokenizer is not written to an output."""
    return key in CODE_KEYS or key.endswith(INTERNAL) or KERNELS.fullmatch(key) is not None


def mistake_in(key: str, value: Any) -> str:
    """Why a config with this key is refused, in words that follow the key; "" where it is not."""
    if key == "trust_remote_code" and value:
        return " asks to run code from the folder; fuse never does"
    if key.endswith(INTERNAL) or (KERNELS.fullmatch(key) and "/" in str(value)):
        return f": {value!r} names code to fetch; fuse never does"
    return ""


def without_code(value: Any) -> Any:
    """The JSON value without keys that make a loader fetch code or run it, at any depth."""
    if isinstance(value, dict):
        return {k: without_code(v) for k, v in value.items() if not is_left_out(k)}
    return [without_code(v) for v in value] if isinstance(value, list) else value
