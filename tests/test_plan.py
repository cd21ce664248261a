"""Plans by hand: files by size, and nothing unaccounted for."""

from pathlib import Path

from fuse.plan import Row, Source, shard
from fuse.safetensors_header import TensorEntry


def row(size: int, number: int) -> Row:
    entry = TensorEntry(Path("f"), f"t{number}", "F32", (size,), 0, 4 * size)
    return Row(f"t{number}", "copy", f"t{number}", "language", (size,), "F32", (Source("m", entry),))


def test_one_file_has_no_number() -> None:
    assert shard([row(1, 0), row(2, 1)], 12) == (("model.safetensors", (0, 1)),)


def test_files_hold_at_most_their_size() -> None:
    rows = [row(n, i) for i, n in enumerate([1, 2, 9, 1, 1])]
    assert shard(rows, 12) == (
        ("model-00001-of-00003.safetensors", (0, 1)),
        ("model-00002-of-00003.safetensors", (2,)),
        ("model-00003-of-00003.safetensors", (3, 4)),
    )
