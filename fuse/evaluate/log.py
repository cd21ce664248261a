"""The log of one folder's replies, JSON Lines: first what was asked of what, then a reply a line, as they come."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import FuseError, RecipeError
from fuse.evaluate.questions import Question
from fuse.evaluate.replies import Reply

FORMAT = 1
WHOLE = 64 << 20  # bytes; of larger files the first MiB, the size and the time of the last change stand for the rest
FIRST = 1 << 20
LOADED = frozenset({".json", ".jinja", ".model", ".txt", ".safetensors", ".bin"})  # suffixes of what a loader reads
INNER = ("branches/**/*", "qformer_tokenizer/*")
AFRESH = "--fresh starts afresh, another --out keeps both"


def data_digests(file: Path, questions: Iterable[Question]) -> dict[str, str]:
    """sha256 of the data file, and of the bytes of all its images in the order of the questions."""
    pictures = hashlib.sha256()
    for path in dict.fromkeys(path for question in questions for path in question.images):
        pictures.update(hashlib.sha256(path.read_bytes()).digest())
    return {"data": hashlib.sha256(file.read_bytes()).hexdigest(), "images": pictures.hexdigest()}


def folder_digests(folder: Path) -> dict[str, str]:
    """A digest of every file of a model folder that is loaded, by its name; the card is none of them."""
    files = [file for pattern in ("*", *INNER) for file in folder.glob(pattern) if file.suffix in LOADED]
    return {file.relative_to(folder).as_posix(): _digest(file) for file in sorted(files) if file.is_file()}


def _digest(file: Path) -> str:
    found = file.stat()
    with file.open("rb") as handle:
        if found.st_size <= WHOLE:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        first = hashlib.sha256(handle.read(FIRST)).hexdigest()
    return f"{first} {found.st_size} {found.st_mtime_ns}"


def header(digests: Mapping[str, str], folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The first line of a folder's log."""
    return {"fuse eval": FORMAT, **digests, "folder": folder_digests(folder), "options": dict(options)}


def check(log: Path, first: Mapping[str, Any]) -> None:
    """Refuse a log that was begun with other data, another folder or other options, or is no log."""
    if lines := _whole(log).splitlines():
        _compare(_object(lines[0], f"{log}:1"), first, log)


def begin(log: Path, first: Mapping[str, Any], questions: Sequence[Question], *, fresh: bool) -> dict[str, Reply]:
    """The replies of an earlier run with the same first line, by key; a log that is not there yet is begun.

    A last line without its end, as a kill leaves it, is cut off. Raises RecipeError as `check` does, and where a
    line is no reply to one of the questions.
    """
    whole = b"" if fresh else _whole(log)
    if not whole:
        log.write_text(json.dumps(first, ensure_ascii=False) + "\n", encoding="utf-8")
        return {}
    check(log, first)
    keys = {question.key for question in questions}
    replies: dict[str, Reply] = {}
    for number, line in enumerate(whole.splitlines()[1:], 2):
        reply = _reply(line, f"{log}:{number}")
        if reply.key not in keys or reply.key in replies:
            raise RecipeError(f"id {reply.key!r} is not a question still open", where=f"{log}:{number}", hint=AFRESH)
        replies[reply.key] = reply
    with log.open("r+b") as handle:
        handle.truncate(len(whole))
    return replies


def _whole(log: Path) -> bytes:
    """The lines of a log that have their end."""
    found = log.read_bytes() if log.exists() else b""
    return found[: found.rfind(b"\n") + 1]


def append(log: Path, replies: Iterable[Reply]) -> None:
    """Write replies behind those that are there, at once."""
    lines = "".join(json.dumps(asdict(reply), ensure_ascii=False) + "\n" for reply in replies)
    with log.open("ab", buffering=0) as handle:
        handle.write(lines.encode("utf-8", "replace"))


def _compare(begun: Mapping[str, Any], now: Mapping[str, Any], log: Path) -> None:
    """Refuse to go on with what was begun otherwise, naming the first thing that differs."""
    if begun.get("fuse eval") != FORMAT:
        raise RecipeError("is not a log of this version of fuse eval", where=log, hint=AFRESH)
    told = ""
    if begun.get("data") != now["data"]:
        told = "was begun with another data file"
    elif begun.get("images") != now["images"]:
        told = "was begun with other images"
    elif begun.get("folder") != now["folder"]:
        before, after = begun.get("folder") or {}, now["folder"]
        name = next(name for name in sorted({*before, *after}) if before.get(name) != after.get(name))
        told = f"was begun with another model: its {name} was different"
        if name not in before or name not in after:
            told = f"was begun with another model: it had {'no' if name in after else 'a'} {name}"
    elif begun.get("options") != now["options"]:
        before, after = begun.get("options") or {}, now["options"]
        name = next(name for name in after if before.get(name) != after[name])
        told = f"was begun with {name} {_said(before.get(name))}, not {_said(after[name])}"
    if told:
        raise RecipeError(told, where=log, hint=AFRESH)


def _said(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        return strict_json.parse_object(line, where=where)
    except FuseError as error:
        raise RecipeError(error.problem, where=where, hint=AFRESH) from None


def _reply(line: bytes, where: str) -> Reply:
    row = _object(line, where)
    number = float | int | None
    right = (
        row.keys() == {"key", "text", "entropy", "loss"} and isinstance(row["key"], str)
        and isinstance(row["text"], str) and isinstance(row["entropy"], number) and isinstance(row["loss"], number)
    )  # fmt: skip
    if not right:
        raise RecipeError("is not a reply: key, text, entropy and loss", where=where, hint=AFRESH)
    return Reply(**row)
