"""What the tables of attacks put into a folder."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

Make = Callable[[Path], object]

GOOD = "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\n"
LINEAR = "language: {method: linear, weights: 0.5}\n"
ROW = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def recipe(text: str | bytes, *others: Make) -> Make:
    """A recipe of that text, and whatever else."""

    def make(folder: Path) -> None:
        (folder / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        for other in others:
            other(folder)

    return make


def file(name: str, data: str | bytes | object = b"") -> Make:
    """A file of bytes, of text, or of JSON; of what a function gives, for much that only its own test needs."""

    def make(folder: Path) -> None:
        given = data() if callable(data) else data
        text = given if isinstance(given, str | bytes) else json.dumps(given)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def link(name: str, to: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return make


def fifo(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def directory(name: str) -> Make:
    return lambda folder: (folder / name).mkdir(parents=True)


def sparse(name: str, size: int, start: bytes = b"") -> Make:
    """A file that says it is large and takes no disk."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as out:
            out.write(start)
            out.truncate(size)

    return make


def member(*makes: Make, config: object = b'{"model_type": "llama"}') -> Make:
    """A recipe with one member `a`, whose config is good enough to come to its weights."""
    text = "members: {a: a}\nlanguage: {method: linear, weights: 1}\n"
    return recipe(text, file("a/config.json", config), *makes)


def header(table: object, body: int | bytes = 0) -> bytes:
    """A safetensors file: the header, JSON or bytes, and so many zero bytes behind it."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + (body if isinstance(body, bytes) else bytes(body))


def weights(table: object, body: int | bytes = 4) -> Make:
    return member(file("a/model.safetensors", header(table, body)))


def raw_weights(data: bytes | Callable[[], bytes]) -> Make:
    return member(file("a/model.safetensors", data))
