"""Whether a language model has the basis that a graft was cut from: its own host, or a fine-tune of the same base.

A fine-tune keeps the rows of the embedding where they were, and another model of the same width has other axes. So a
donor records the sha256 of its host's embedding, and a sample of it: 64 rows spread over the vocabulary, 64 columns
spread over the width. Two language models have one basis where the sampled rows, each matched by its token, have a mean
cosine of 0.9 or more. The sample, its size and the bound are our choice. It is read from a few rows of a file, so that
a plan can ask. torch is not imported here.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuse import families
from fuse.anatomy import Member
from fuse.checkpoint import fetch_entries
from fuse.errors import CheckpointError
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry

ROWS, COLUMNS = 64, 64  # of the sample
LEAST, FOUND = 0.9, 0.5  # mean cosine; share of the sampled tokens that the other vocabulary must have
LAYER_NORMS = {"gpt2", "opt", "cohere", "cohere2"}  # families of language models; the others have RMSNorm
CHUNK = 1 << 24
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def host_of(member: Member) -> dict[str, Any]:
    """What graft.json and projector.json record of the language model that they were cut from.

    Raises CheckpointError for an embedding that cannot be read.
    """
    kind = families.text_type_of(member.checkpoint.config, member.family, str(member.folder))
    return {
        "model": member.name, "model_type": kind, "hidden_size": member.basis.hidden_size,
        "layers": member.basis.layers, "norm": norm_of(member), "norm_eps": member.basis.norm_eps,
        "embedding": fingerprint(member),
    }  # fmt: skip


def norm_of(member: Member) -> str:
    """`layer` or `rms`."""
    return "layer" if member.text.name in LAYER_NORMS else "rms"


def fingerprint(member: Member) -> dict[str, Any]:
    """The `embedding` of a host record.

    `shape` [V, D] and `sha256` (of the bytes as stored) of the whole table; `rows`, the sampled ids; `tokens`, what
    they are, or null without a tokenizer; `values`, the sample [rows, min(64, D)] as base64 of little-endian float32.
    """
    entry = member.language[member.text.embedding]
    ids = [int(i) for i in _spread(_used(member, entry), ROWS)]
    texts = None
    if member.vocabulary is not None:
        tokens = {row: token for token, row in member.vocabulary.ids.items()}
        texts = [tokens.get(i) for i in ids]
    values = sample(entry, ids).astype("<f4").tobytes()
    return {
        "shape": list(entry.shape), "sha256": _sha256(entry), "rows": ids, "tokens": texts,
        "values": b64encode(values).decode(),
    }  # fmt: skip


def sample(entry: TensorEntry, rows: list[int]) -> NDArray[np.float32]:
    """Rows of a stored matrix [V, D] at the sampled columns, [len(rows), min(64, D)].

    Raises CheckpointError for a dtype that does not hold floats.
    """
    width = entry.shape[1]
    columns = _spread(width, COLUMNS)
    size = width * FLOAT_BYTES.get(entry.dtype, 0)
    if not size:
        raise CheckpointError(f"tensor {entry.name!r} has dtype {entry.dtype}, not floats", where=entry.file)
    found = np.empty((len(rows), len(columns)), np.float32)
    with entry.file.open("rb") as file:
        for number, row in enumerate(rows):
            file.seek(entry.begin + row * size)
            found[number] = _floats(file.read(size), entry.dtype)[columns]
    return found


def is_told(record: Mapping[str, Any]) -> bool:
    """Whether a host record has a sample; where it has none, only sizes and norms can be compared."""
    return bool(record.get("embedding"))


def why_another_basis(record: Mapping[str, Any], member: Member) -> str:
    """ "" where a language model can have the basis of a host record, else one sentence with the figures.

    record: `host` of graft.json or projector.json; what it leaves out or has as null is not compared. The sentence
    speaks of "it", the donor. Raises CheckpointError for a record that is broken.
    """
    numbers = {"hidden_size": "width", "layers": "depth", "norm": "norms of kind", "norm_eps": "norms with eps"}
    other = host_numbers(member)
    for key, word in numbers.items():
        if record.get(key) not in (None, "", other[key]):
            return f"it was cut from a language model of {word} {record[key]}, and {member.name} has {other[key]}"
    if not is_told(record):
        return ""
    cosine, found, asked = likeness(record["embedding"], member)
    whose = record.get("model") or "its own host"
    if found < FOUND * asked:
        return f"{found} of {asked} tokens sampled from {whose} are in the vocabulary of {member.name}: another basis"
    if cosine < LEAST:
        return (
            f"the embedding of {member.name} has another basis than that of {whose}: {found} rows that both have "
            f"agree with cosine {round(cosine, 2) + 0.0:.2f}, and {LEAST} is asked for"
        )
    return ""


def host_numbers(member: Member) -> dict[str, Any]:
    """The numbers of a host record."""
    basis = member.basis
    return {
        "hidden_size": basis.hidden_size, "layers": basis.layers, "norm": norm_of(member), "norm_eps": basis.norm_eps,
    }  # fmt: skip


def likeness(embedding: Mapping[str, Any], member: Member) -> tuple[float, int, int]:
    """(mean cosine of the sampled rows, rows that both have, rows sampled). Rows of zeros count on no side.

    Rows are matched by token where both vocabularies are known, else by number.
    """
    entry = member.language[member.text.embedding]
    wanted, here, texts = _decoded(embedding), list(embedding["rows"]), embedding.get("tokens")
    if wanted.shape[1] != len(_spread(entry.shape[1], COLUMNS)):
        return 0.0, 0, len(here)
    if texts is not None and member.vocabulary is not None:
        there = [-1 if token is None else member.vocabulary.ids.get(token, -1) for token in texts]
    else:
        there = here
    both = [n for n, row in enumerate(there) if 0 <= row < entry.shape[0]]
    if not both:
        return 0.0, 0, len(here)
    _bring_rows(member, entry, [there[n] for n in both])
    ours, theirs = sample(entry, [there[n] for n in both]).astype(float), wanted[both].astype(float)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    told = norms > 0
    cosines = (ours * theirs).sum(1)[told] / norms[told]
    return (float(cosines.mean()) if told.any() else 0.0), int(told.sum()), len(here)


def _bring_rows(member: Member, entry: TensorEntry, rows: list[int]) -> None:
    """Fetch rows of a stored matrix, where its member is elsewhere; the hub gives the whole file."""
    size = entry.nbytes // entry.shape[0]
    places = ((entry.begin + row * size, entry.begin + (row + 1) * size) for row in rows)
    fetch_entries(member.checkpoint, [entry], [replace(entry, begin=begin, end=end) for begin, end in places])


def _decoded(embedding: Mapping[str, Any]) -> NDArray[np.float32]:
    """The sample of a record. Raises CheckpointError where it is none."""
    try:
        rows = embedding["rows"]
        values = np.frombuffer(b64decode(embedding["values"], validate=True), "<f4").reshape(len(rows), -1)
        texts = embedding.get("tokens")
        good = all(type(row) is int for row in rows) and (texts is None or len(texts) == len(rows))
        good = good and all(isinstance(text, str | None) for text in texts or ())
        if good and len(rows) and values.shape[1] and np.isfinite(values).all():
            return values
    except (KeyError, TypeError, ValueError):
        pass
    raise CheckpointError("host: embedding is no sample of an embedding", where="graft.json")


def _used(member: Member, entry: TensorEntry) -> int:
    """How many rows tokens have; tables are padded."""
    known = member.vocabulary.size if member.vocabulary is not None else entry.shape[0]
    return min(known, entry.shape[0]) or entry.shape[0]


def _spread(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` different numbers below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def _floats(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, DTYPES[dtype]).astype(np.float32)


def _sha256(entry: TensorEntry) -> str:
    digest, left = hashlib.sha256(), entry.nbytes
    with entry.file.open("rb") as file:
        file.seek(entry.begin)
        while left:
            data = file.read(min(CHUNK, left))
            if not data:
                raise CheckpointError(f"tensor {entry.name!r} ends before its last byte", where=entry.file)
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()
