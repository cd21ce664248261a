"""JSON Lines, read strictly: one object a line, UTF-8, no duplicate keys, no NaN, lines of bounded length."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import FuseError, MachineError, RecipeError

MAX_LINE = 1 << 20  # bytes; a question is a few hundred
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line but those of nothing but white space, as they are read.

    A byte order mark at the start is passed over. Raises RecipeError when there is no such plain file or a line is
    no strict JSON object, naming file:line, and the column where the JSON breaks; MachineError when the file may not
    be read.
    """
    if not file.exists():
        raise RecipeError("there is no such file", where=file)
    if not file.is_file():
        raise RecipeError("is not a plain file", where=file, hint="name a JSON Lines file")
    number = 0
    try:
        with file.open("rb") as handle:
            while line := handle.readline(MAX_LINE + 1):
                number += 1
                where = f"{file}:{number}"
                if len(line) > MAX_LINE:
                    raise RecipeError(f"the line is longer than {MAX_LINE:,} bytes", where=where,
                                      hint="one JSON object a line, and images by path")  # fmt: skip
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if line.strip():
                    yield number, _object(line.rstrip(), where)
    except OSError as error:
        raise MachineError(f"cannot be read ({error.strerror})", where=file) from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        return strict_json.parse_object(line, where="")
    except FuseError as error:  # its place in a text of one line is ":1:column"
        raise RecipeError(error.problem, where=f"{where}{error.where.removeprefix(':1')}", hint=error.hint) from None
