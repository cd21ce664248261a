"""Which token a row of the embedding table belongs to, read from the tokenizer's files with the standard library."""

import hashlib
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import CheckpointError

MAX_ID = 1 << 31  # beyond which no library counts tokens
MAX_TEMPLATE = 1 << 20  # the longest in use have about 30,000 letters


@dataclass(frozen=True)
class Vocabulary:
    """Token to id, with what else must agree before two members may share a prompt.

    added: the tokens that stand outside the model's own vocabulary. digest: sha256 over the id-ordered tokens.
    template: the chat template's text ("" if there is none).
    """

    ids: Mapping[str, int]
    added: frozenset[str]
    digest: str
    template: str
    source: str  # the file that the tokens came from

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a folder, or None when it holds no tokenizer.

    Reads tokenizer.json, else vocab.json, else a sentencepiece tokenizer.model or spiece.model; added_tokens.json
    and the added tokens of tokenizer_config.json come on top. Raises CheckpointError when a file is broken or two
    tokens share an id.
    """
    fast = folder / "tokenizer.json"
    if fast.exists():
        data = strict_json.read_bytes(fast)
        if data not in _parsed:  # members of a family mostly share the file
            _parsed[data] = _tokens(*_parse_fast(data, fast), fast)
        return Vocabulary(*_parsed[data], read_template(folder), fast.name)
    for name, read in (("vocab.json", strict_json.read_object), ("tokenizer.model", _read_pieces),
                       ("spiece.model", _read_pieces), ("sentencepiece.bpe.model", _read_pieces)):  # fmt: skip
        if (folder / name).exists():
            tokens = _tokens(read(folder / name), _read_added(folder), folder / name)
            return Vocabulary(*tokens, read_template(folder), name)
    return None


_parsed: dict[bytes, tuple[Mapping[str, int], frozenset[str], str]] = {}


def _tokens(
    vocab: Mapping[str, Any], added: Mapping[str, Any], where: Path
) -> tuple[dict[str, int], frozenset[str], str]:
    """All tokens, which of them are added, and the digest; CheckpointError where an id is wrong or taken twice."""
    ids: dict[str, Any] = {**vocab, **added}
    by_id: dict[int, str] = {}
    for token, row in ids.items():
        if type(row) is not int or not 0 <= row < MAX_ID:
            raise CheckpointError(f"token {token!r} has id {row!r}", where=where)
        if by_id.setdefault(row, token) != token:
            raise CheckpointError(f"tokens {by_id[row]!r} and {token!r} share id {row}", where=where)
    text = "\0".join(f"{i}\t{by_id[i]}" for i in sorted(by_id))
    return ids, frozenset(added), hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _parse_fast(data: bytes, path: Path) -> tuple[dict[str, int], dict[str, int]]:
    tokenizer = strict_json.parse_object(data, where=path)
    model = tokenizer.get("model")
    vocab: Any = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list) and all(isinstance(r, list) and r and isinstance(r[0], str) for r in vocab):
        vocab = {row[0]: i for i, row in enumerate(vocab)}  # Unigram: [piece, score]
    if not isinstance(vocab, dict):
        raise CheckpointError("model.vocab is not a vocabulary", where=path)
    rows = tokenizer.get("added_tokens") or []
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("content"), str) for r in rows):
        raise CheckpointError("added_tokens is not a list of {id, content}", where=path)
    return vocab, {row["content"]: row.get("id") for row in rows}


def _read_added(folder: Path) -> dict[str, int]:
    added: dict[str, int] = {}
    file = folder / "tokenizer_config.json"
    if file.exists():
        decoder = strict_json.read_object(file).get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise CheckpointError("added_tokens_decoder is not a table of {id: {content}}", where=file)
        for row, token in decoder.items():
            content = token.get("content") if isinstance(token, dict) else None
            if not isinstance(content, str) or not re.fullmatch(r"[0-9]{1,9}", row):
                told = f"added_tokens_decoder has {row[:20]!r}: {reprlib.repr(token)}, not a number and its {{content}}"
                raise CheckpointError(told, where=file)
            added[content] = int(row)
    if (folder / "added_tokens.json").exists():
        added |= strict_json.read_object(folder / "added_tokens.json")
    return added


def read_template(folder: Path) -> str:
    """The text of the folder's chat template, "" where there is none.

    Raises CheckpointError where it is no text, or longer than 1 MiB.
    """
    if (folder / "chat_template.jinja").exists():
        data = strict_json.read_bytes(folder / "chat_template.jinja", max_bytes=MAX_TEMPLATE)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"not UTF-8 at byte {error.start}", where=folder / "chat_template.jinja") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            template = strict_json.read_object(folder / name).get("chat_template")
            if isinstance(template, list):  # several named templates; the one called default is used
                named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
                template = named.get("default")
            if template is None or template == "":
                continue
            if not isinstance(template, str):
                told = f"chat_template is {reprlib.repr(template)}, not text"
                raise CheckpointError(told, where=folder / name)
            if len(template) > MAX_TEMPLATE:
                told = f"chat_template has {len(template):,} letters, more than the {MAX_TEMPLATE:,} that fuse reads"
                raise CheckpointError(told, where=folder / name)
            return template
    return ""


def _read_pieces(path: Path) -> dict[str, int]:
    """The pieces of a sentencepiece model: field 1 of the protobuf, repeated, whose own field 1 is the text."""
    pieces: dict[str, int] = {}
    try:
        for field, value in _fields(strict_json.read_bytes(path)):
            if field == 1 and isinstance(value, bytes):
                text = next(v for f, v in _fields(value) if f == 1 and isinstance(v, bytes))
                pieces.setdefault(text.decode("utf-8"), len(pieces))
    except (IndexError, StopIteration, UnicodeDecodeError, ValueError):
        raise CheckpointError("not a sentencepiece model", where=path) from None
    return pieces


def _fields(data: bytes):
    """(field number, bytes or int) of one protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind in {1, 5}:
            value, at = data[at : at + (8 if kind == 1 else 4)], at + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(data):
            raise ValueError("truncated")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if shift > 70:
            raise ValueError("a number of more than ten bytes")
        if byte < 128:
            return value, at
