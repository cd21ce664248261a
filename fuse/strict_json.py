"""JSON as a checkpoint may hold it: UTF-8, no duplicate keys, no NaN, bounded size, depth and number of values."""

import json
from pathlib import Path
from typing import Any, NoReturn

from fuse.errors import CheckpointError, short
from fuse.plain_files import read_plain

MAX_BYTES = 100_000_000  # the largest tokenizer.json in use is about 35 MB
MAX_VALUES = 2_400_000  # that one has 1.8 million; each takes up to 300 bytes and 2 us
MAX_KEYS = 1_000_000  # a header of 200,000 tensors has four for each; a key costs most
BOUNDS = {  # what stands in the text no less often than there are of these
    "values": (MAX_VALUES, (b",", b"[", b"{")),
    "keys": (MAX_KEYS, (b":",)),
}


def read_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises CheckpointError when the file is missing, empty, not a plain file, too large, or not a strict JSON object.
    """
    return parse_object(read_bytes(path, max_bytes=max_bytes), where=path)


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a plain file of bounded size."""
    return read_plain(path, max_bytes)


def parse_object(data: bytes, *, where: object) -> dict[str, Any]:
    """A JSON object from bytes; CheckpointError with `where` for anything else."""
    if not data.strip():
        raise CheckpointError("the file is empty", where=where)
    for what, (most, signs) in BOUNDS.items():
        if sum(map(data.count, signs)) > most:
            raise CheckpointError(f"holds more than {most:,} {what}", where=where)
    text = _text(data, where)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except _Refused as error:
        raise CheckpointError(str(error), where=where) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"not JSON: {error.msg}", where=f"{where}:{error.lineno}:{error.colno}") from None
    except RecursionError:
        raise CheckpointError("nested too deeply", where=where) from None
    except ValueError as error:  # an integer of more digits than Python converts
        if "digits" not in str(error):
            raise
        raise CheckpointError("not JSON: a number has thousands of digits", where=where) from None
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise CheckpointError("holds half of a surrogate pair, which is no text", where=where) from None
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a JSON {type(value).__name__}"
        raise CheckpointError(f"holds {kind}, not an object", where=where)
    return value


def _text(data: bytes, where: object) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"not UTF-8 at byte {error.start}", where=where) from None
    if text.startswith("\ufeff"):
        raise CheckpointError("begins with a byte order mark", where=where, hint="save it as UTF-8 without BOM")
    return text


class _Refused(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"key {short(key)} stands twice in one object")
            seen.add(key)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON number")
