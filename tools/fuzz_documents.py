"""Documents to try readers on: valid ones with changes that know JSON, with changes of bytes, and no documents at all.

A change is three numbers, so that hypothesis draws it quickly and makes a failing input small: what is done, where, and
with what.
"""

import json
import re
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

Change = tuple[int, int, int]
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 32, 255, 1 << 31, 1 << 53, 1 << 62, 1 << 63, 1 << 64, 10**30, -(1 << 63),
    0.5, 1.0, -0.0, 1e308, float("nan"), float("inf"), "", " ", ".", "..", "../x", "../../etc/passwd", "/abs", "a/b",
    "C:\\x", "~", "$HOME", "a\0b", "\x1b[31m", "\u202eexe", "e\u0301", "\u00e9", "\ufeff", "\ud800", "<script>",
    "x" * 2000, "model.safetensors", "F32", "F8_E4M3", "BF16", "llama", "fuse", "org/name", "null", "nan", "1e400",
    [], {}, [[]], [0], [0, 0], [1, 2, 3], [-1], [1 << 62, 4], [None], ["a"], {"": {}}, {"a": {"b": {"c": [1]}}},
    {"auto_map": {"A": "x.B"}}, {"trust_remote_code": True}, {"_attn_implementation": "org/kernel"},
    {"weight_map": {}}, {"quantization_config": {}},
)  # fmt: skip
KEYS = (
    "", "a", "model_type", "trust_remote_code", "auto_map", "_attn_implementation_internal", "weight_map", "dtype",
    "shape", "data_offsets", "__metadata__", "text_config", "vision_config", "e\u0301", "a\0b", "../x", "x" * 2000,
)  # fmt: skip
TOKENS = (
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u0000", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"\0", b"NaN",
    b"Infinity", b"1e999", b"-", b"9" * 5000, b"\n", b"\t", b"  ", b"- ", b"&a ", b"*a", b"<<: ", b"!x ", b"? ",
    b"!!python/name:os.system ", b"|\n", b">\n", b"---\n", b"...\n", b"%YAML 1.1\n", b"# ", b"'", b".inf", b"0x1F",
    b"1_000", b"\r", b"null", b"true", b"2001-01-01", b"[" * 40, b"[" * 100_000, b'{"a":' * 2000, b"\xe2\x80\xa8",
    b"\xc2\x85", b"@", b"`", struct.pack("<Q", 1 << 63), struct.pack("<Q", 100_000_001), struct.pack("<Q", 2),
)  # fmt: skip
numbers = st.integers(0, 1 << 16)
changes = st.lists(st.tuples(numbers, numbers, numbers), max_size=4)


def changed(value: Any, todo: Sequence[Change]) -> Any:
    """The JSON value with nodes replaced, removed, renamed, added, wrapped or exchanged; the given one stays."""
    root = {"": deepcopy(value)}
    for what, where, how in todo:
        nodes = list(_nodes(root))
        holder, key = nodes[where % len(nodes)]
        match what % 7:
            case 0:
                holder[key] = deepcopy(ODD[how % len(ODD)])
            case 1 if holder is not root:
                del holder[key]
            case 2 if isinstance(holder, dict) and holder is not root:
                holder[KEYS[how % len(KEYS)]] = holder.pop(key)
            case 3 if isinstance(holder[key], dict):
                holder[key][KEYS[how % len(KEYS)]] = deepcopy(ODD[how // len(KEYS) % len(ODD)])
            case 4:
                holder[key] = [deepcopy(holder[key]) for _ in range(1 + how % 3)]
            case 5:
                other, at = nodes[how % len(nodes)]
                holder[key] = deepcopy(other[at])
            case _ if isinstance(holder[key], int | float):
                holder[key] += how % 5 - 2
    return root[""]


def _nodes(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _nodes(value[key])


def text_of(value: Any) -> bytes:
    """JSON, with whatever the value holds."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def torn(data: bytes, todo: Sequence[Change]) -> bytes:
    """The bytes with bits flipped, tokens put in, pieces cut out, doubled, cut off, or a key that stands twice."""
    for what, where, how in todo:
        at = where % (len(data) + 1)
        match what % 6:
            case 0 if data:
                at %= len(data)
                data = data[:at] + bytes([data[at] ^ 1 << how % 8]) + data[at + 1 :]
            case 1:
                data = data[:at] + TOKENS[how % len(TOKENS)] + data[at:]
            case 2:
                data = data[:at] + data[at + 1 + how % 16 :]
            case 3:
                data = data[: at + how % 64] + data[at:]
            case 4:
                data = data[:at]
            case _:
                if keys := list(re.finditer(rb'"[^"\\]*"\s*:', data)):
                    found = keys[where % len(keys)]
                    data = data[: found.start()] + found[0] + b"0," + data[found.start() :]
    return data


def documents(valid: st.SearchStrategy[Any], write: Callable[[Any], bytes] = text_of) -> st.SearchStrategy[bytes]:
    """Inputs for a reader of JSON objects: mostly valid documents with changes, seldom anything."""
    near = st.builds(lambda value, inner, outer: torn(write(changed(value, inner)), outer), valid, changes, changes)
    return st.one_of(near, near, near, near, anything)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
anything = st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()) | trees.map(text_of)
