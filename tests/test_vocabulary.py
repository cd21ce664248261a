"""Tokens by row, from every file that tokenizers keep them in."""

import json
import struct
from pathlib import Path

import pytest

from fuse.errors import CheckpointError
from fuse.vocabulary import read_vocabulary


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def pieces(*tokens: str) -> bytes:
    """A sentencepiece model with these pieces: text, score and type of each, then trainer settings that we skip."""
    model = b""
    for token in tokens:
        text = token.encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -1.5) + b"\x18\x01"
        model += b"\x0a" + bytes([len(piece)]) + piece
    return model + b"\x12\x03\x08\x96\x01"


def test_fast_tokenizer(tmp_path: Path) -> None:
    write(
        tmp_path, tokenizer__json={"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 5, "content": "<x>"}]}
    )
    found = read_vocabulary(tmp_path)
    assert found and dict(found.ids) == {"a": 0, "b": 1, "<x>": 5} and found.added == {"<x>"} and found.size == 6


def test_unigram(tmp_path: Path) -> None:
    found = read_vocabulary(write(tmp_path, tokenizer__json={"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}))
    assert found and dict(found.ids) == {"a": 0, "b": 1}


def test_sentencepiece_with_added_tokens(tmp_path: Path) -> None:
    write(tmp_path, tokenizer__model=pieces("<unk>", "\u2581the", "z"), added_tokens__json={"<image>": 3})
    found = read_vocabulary(tmp_path)
    assert (
        found and dict(found.ids) == {"<unk>": 0, "\u2581the": 1, "z": 2, "<image>": 3} and found.added == {"<image>"}
    )


def test_the_same_tokens_from_other_files_have_one_digest(tmp_path: Path) -> None:
    for name in "xy":
        (tmp_path / name).mkdir()
    one = read_vocabulary(write(tmp_path / "x", tokenizer__model=pieces("a", "b")))
    two = read_vocabulary(write(tmp_path / "y", vocab__json={"b": 1, "a": 0}))
    assert one and two and one.digest == two.digest


def test_templates(tmp_path: Path) -> None:
    write(tmp_path, vocab__json={"a": 0}, tokenizer_config__json={"chat_template": "old"})
    assert read_vocabulary(tmp_path).template == "old"  # pyright: ignore
    write(tmp_path, chat_template__jinja=b"new")
    assert read_vocabulary(tmp_path).template == "new"  # pyright: ignore


def test_nothing_there(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None


BROKEN = {
    "tokenizer__json: model.vocab is not a vocabulary": {"model": {"vocab": 3}},
    "tokenizer__json: added_tokens is not a list of {id, content}": {"model": {"vocab": {}}, "added_tokens": [3]},
    "tokenizer__json: token 'a' has id '0'": {"model": {"vocab": {"a": "0"}}},
    "tokenizer__json: token 'a' has id -1": {"model": {"vocab": {"a": -1}}},
    "tokenizer__json: tokens 'a' and 'b' share id 0": {"model": {"vocab": {"a": 0, "b": 0}}},
    "tokenizer__model: not a sentencepiece model": pieces("abc")[:-7],
    "vocab__json: holds a JSON list, not an object": [],
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str) -> None:
    file, message = case.split(": ", 1)
    write(tmp_path, **{file: BROKEN[case]})
    with pytest.raises(CheckpointError) as error:
        read_vocabulary(tmp_path)
    assert str(error.value) == f"{tmp_path}/{file.replace('__', '.')}: {message}"


def test_template_that_is_no_text(tmp_path: Path) -> None:
    write(tmp_path, vocab__json={"a": 0}, chat_template__jinja=b"{{ \xff }}")
    with pytest.raises(CheckpointError) as error:
        read_vocabulary(tmp_path)
    assert str(error.value) == f"{tmp_path}/chat_template.jinja: not UTF-8 at byte 3"
