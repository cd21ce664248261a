"""Every refusal of the header reader, word for word, and what it reads from a good file."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fuse.errors import CheckpointError
from fuse.safetensors_header import read_header


def write(path: Path, header: object, body: bytes = b"", *, raw: bytes | None = None) -> Path:
    text = raw if raw is not None else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def row(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": offsets}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6, dtype=torch.bfloat16).view(2, 3), "b": torch.tensor(3.0), "c": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "model.safetensors")
    assert {name: (e.dtype, e.shape) for name, e in found.items()} == {
        "a": ("BF16", (2, 3)), "b": ("F32", ()), "c": ("F32", (0, 4))
    }  # fmt: skip
    data = (tmp_path / "model.safetensors").read_bytes()
    assert torch.frombuffer(bytearray(data[found["a"].begin : found["a"].end]), dtype=torch.bfloat16).tolist() == [
        0, 1, 2, 3, 4, 5
    ]  # fmt: skip


BAD = {
    "overlap": ({"a": row(), "b": row(offsets=(0, 4))}, 4, "tensor 'b': begins at byte"),
    "hole": ({"a": row(), "b": row(offsets=(8, 12))}, 12, "leaves a hole before it"),
    "trailing": ({"a": row()}, 5, "trailing bytes"),
    "truncated": ({"a": row()}, 3, "truncated"),
    "size": ({"a": row(shape=(2,))}, 4, "shape [2] of F32 needs 8 bytes but the header gives 4"),
    "product": ({"a": row(shape=(1 << 40, 1 << 40))}, 4, "needs 4,835,703,278,458,516,698,824,704 bytes"),
    "negative": ({"a": row(shape=(-1,))}, 4, "shape [-1] is not a list of sizes"),
    "float": ({"a": row(shape=[1.0])}, 4, "shape [1.0] is not a list of sizes"),
    "rank": ({"a": row(shape=(1,) * 17)}, 4, "is not a list of sizes"),
    "dtype": ({"a": row("F31")}, 4, "unknown dtype 'F31'"),
    "quantised": ({"a": row("F8_E4M3")}, 4, "dtype F8_E4M3 is quantised and cannot be merged"),
    "reversed": ({"a": row(offsets=(4, 0))}, 4, "data_offsets [4, 0] are not [begin, end]"),
    "empty name": ({"": row()}, 4, "a tensor name is empty, overlong or has control characters"),
    "path name": ({"../../x": row()}, 4, "a tensor name looks like a path"),
    "absolute name": ({"/abs": row()}, 4, "a tensor name looks like a path"),
    "nul name": ({"a\0b": row()}, 4, "a tensor name is empty, overlong or has control characters"),
    "long name": ({"a" * 2000: row()}, 4, "a tensor name is empty, overlong or has control characters"),
    "metadata": ({"__metadata__": {"a": 1}, "a": row()}, 4, "__metadata__ is not a table of strings"),
    "code points": (
        {"\u00e9": row(), "e\u0301": row(offsets=(4, 8))},
        8,
        "two tensor names are the same text in other",
    ),
    "nothing": ({"__metadata__": {}}, 0, "holds no tensors"),
    "extra field": ({"a": row() | {"x": 1}}, 4, "the header row is not {dtype, shape, data_offsets}"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(tmp_path: Path, case: str) -> None:
    header, size, message = BAD[case]
    with pytest.raises(CheckpointError) as error:
        read_header(write(tmp_path / "model.safetensors", header, b"\0" * size))
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "model.safetensors"))


RAW = {
    "empty file": (b"", "0 bytes is too short for a safetensors file"),
    "seven bytes": (b"1234567", "7 bytes is too short"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "this is a git-lfs pointer"),
    "huge length": (struct.pack("<Q", 1 << 63) + b"{}", "a header of 9,223,372,036,854,775,808 bytes is more than"),
    "just over": (struct.pack("<Q", 100_000_001) + b"{}", "is more than 100,000,000"),
    "length beyond the file": (struct.pack("<Q", 50) + b"{}", "the header ends at byte 58 of 10: truncated"),
    "leading space": (struct.pack("<Q", 3) + b" {}", "the header does not begin with '{'"),
    "array": (struct.pack("<Q", 2) + b"[]", "the header does not begin with '{'"),
    "not json": (struct.pack("<Q", 2) + b"{x", "not JSON"),
    "not utf-8": (struct.pack("<Q", 3) + b"{\xff}", "not UTF-8 at byte 1"),
    "duplicate": (struct.pack("<Q", 17) + b'{"a": {}, "a": 1}', "key 'a' stands twice in one object"),
    "deep": (struct.pack("<Q", 100_005) + b'{"a":' + b"[" * 100_000, "nested too deeply"),
    "nan": (struct.pack("<Q", 10) + b'{"a": NaN}', "NaN is not a JSON number"),
}


@pytest.mark.parametrize("case", RAW)
def test_refuses_bytes(tmp_path: Path, case: str) -> None:
    data, message = RAW[case]
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"^.*model\.safetensors") as error:
        read_header(tmp_path / "model.safetensors")
    assert message in str(error.value)


def test_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the file is missing"):
        read_header(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a plain file"):
        read_header(tmp_path)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x88B1F])
def test_a_header_whose_length_looks_like_another_format(tmp_path: Path, length: int) -> None:
    """A pickle begins with 80 02, gzip with 1f 8b 08; so does the length of some headers."""
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + header + b"x")
    assert list(read_header(tmp_path / "a.safetensors")) == ["a"]
