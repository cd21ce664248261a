"""Files of weights whose header or size is hostile."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.harness import Attack, hold
from tests.attacks.making import ROW, directory, fifo, header, link, member, raw_weights, sparse, weights

A = "./a/model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5000000000\n"
ODD_NAME = "a tensor name is empty, overlong or has control characters"


HUGE = header({"a": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}})


def row(**changes: object) -> dict[str, object]:
    return {"a": {**ROW, **changes}}


def after(name: str, begin: int, **changes: object) -> dict[str, object]:
    """A good tensor, and another at `begin`."""
    return {"a": ROW, name: {**ROW, "data_offsets": [begin, begin + 4], **changes}}


def many(count: int) -> bytes:
    rows = ", ".join(f'"t{i}": {{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}' for i in range(count))
    return header(f"{{{rows}}}".encode())


TABLES: list[tuple[str, object, int, str]] = [
    ("overlap", after("b", 2), 6, "a/model.safetensors: tensor 'b': begins at byte 132 and overlaps the tensor before it"),
    ("the same bytes twice", after("b", 0), 4, "a/model.safetensors: tensor 'b': begins at byte 130 and overlaps the tensor before it"),
    ("a hole", after("b", 8), 12, "a/model.safetensors: tensor 'b': begins at byte 139 and leaves a hole before it"),
    ("a hole at the start", row(data_offsets=[4, 8]), 8, "a/model.safetensors: tensor 'a': begins at byte 73 and leaves a hole before it"),
    ("trailing bytes", row(), 5, "a/model.safetensors: the tensors end at byte 73 but the file has 74: trailing bytes"),
    ("truncated", row(), 3, "a/model.safetensors: the tensors end at byte 73 but the file has 72: truncated"),
    ("no body", row(), 0, "a/model.safetensors: the tensors end at byte 73 but the file has 69: truncated"),
    ("a product beyond 64 bits", row(shape=[1 << 33, 1 << 33]), 4, "a/model.safetensors: tensor 'a': shape [8589934592, 8589934592] of F32 needs 295,147,905,179,352,825,856 bytes but the header gives 4"),
    ("a product that wraps to 4", row(shape=[1 << 32, 1 << 30, 4]), 4, "a/model.safetensors: tensor 'a': shape [4294967296, 1073741824, 4] of F32 needs 73,786,976,294,838,206,464 bytes but the header gives 4"),
    ("a product that wraps to 0", row(shape=[1 << 61, 8], data_offsets=[0, 0]), 0, "a/model.safetensors: tensor 'a': shape [2305843009213693952, 8] of F32 needs 73,786,976,294,838,206,464 bytes but the header gives 0"),
    ("a size of 2 to the 63", row(shape=[1 << 63]), 4, "a/model.safetensors: tensor 'a': shape [9223372036854775808] is not a list of sizes"),
    ("a negative size", row(shape=[-1]), 4, "a/model.safetensors: tensor 'a': shape [-1] is not a list of sizes"),
    ("two negative sizes", row(shape=[-1, -1]), 4, "a/model.safetensors: tensor 'a': shape [-1, -1] is not a list of sizes"),
    ("a size with a point", row(shape=[1.0]), 4, "a/model.safetensors: tensor 'a': shape [1.0] is not a list of sizes"),
    ("a size that is true", row(shape=[True]), 4, "a/model.safetensors: tensor 'a': shape [True] is not a list of sizes"),
    ("a size in quotes", row(shape=["1"]), 4, "a/model.safetensors: tensor 'a': shape ['1'] is not a list of sizes"),
    ("a size that is null", row(shape=None), 4, "a/model.safetensors: tensor 'a': shape None is not a list of sizes"),
    ("a list as size", row(shape=[[1]]), 4, "a/model.safetensors: tensor 'a': shape [[1]] is not a list of sizes"),
    ("a rank of 100,000", row(shape=[1] * 100_000), 4, "a/model.safetensors: tensor 'a': shape [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,... is not a list of sizes"),
    ("an unknown dtype", row(dtype="F31"), 4, "a/model.safetensors: tensor 'a': unknown dtype 'F31' (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)"),
    ("a dtype in small letters", row(dtype="f32"), 4, "a/model.safetensors: tensor 'a': unknown dtype 'f32' (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)"),
    ("a dtype that is a number", row(dtype=32), 4, "a/model.safetensors: tensor 'a': unknown dtype 32 (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)"),
    ("a dtype that is a list", row(dtype=["F32"]), 4, "a/model.safetensors: tensor 'a': unknown dtype ['F32'] (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)"),
    ("a dtype of 10,000 letters", row(dtype="F" * 10_000), 4, "a/model.safetensors: tensor 'a': unknown dtype 'FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF... (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)"),
    ("complex numbers", row(dtype="C64", data_offsets=[0, 8]), 8, "a/model.safetensors: tensor 'a': unknown dtype 'C64' (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)"),
    ("float4", row(dtype="F4", shape=[2], data_offsets=[0, 1]), 1, "a/model.safetensors: tensor 'a': dtype F4 is quantised and cannot be merged (use the unquantised checkpoint)"),
    ("float8 scales", row(dtype="F8_E8M0", data_offsets=[0, 1]), 1, "a/model.safetensors: tensor 'a': dtype F8_E8M0 is quantised and cannot be merged (use the unquantised checkpoint)"),
    ("a size that is not the shape's", row(shape=[2]), 4, "a/model.safetensors: tensor 'a': shape [2] of F32 needs 8 bytes but the header gives 4"),
    ("offsets that are reversed", row(data_offsets=[4, 0]), 4, "a/model.safetensors: tensor 'a': data_offsets [4, 0] are not [begin, end]"),
    ("negative offsets", row(data_offsets=[-4, 0]), 4, "a/model.safetensors: tensor 'a': data_offsets [-4, 0] are not [begin, end]"),
    ("offsets with a point", row(data_offsets=[0, 4.0]), 4, "a/model.safetensors: tensor 'a': data_offsets [0, 4.0] are not [begin, end]"),
    ("three offsets", row(data_offsets=[0, 2, 4]), 4, "a/model.safetensors: tensor 'a': data_offsets [0, 2, 4] are not [begin, end]"),
    ("offsets that are a table", row(data_offsets={"0": 4}), 4, "a/model.safetensors: tensor 'a': data_offsets {'0': 4} are not [begin, end]"),
    ("offsets beyond 64 bits", row(data_offsets=[1 << 64, (1 << 64) + 4]), 4, "a/model.safetensors: tensor 'a': data_offsets [18446744073709551616, 18446744073709551620] are not [begin, end]"),
    ("offsets beyond the file", row(data_offsets=[1 << 50, (1 << 50) + 4]), 4, "a/model.safetensors: tensor 'a': begins at byte 1,125,899,906,842,723 and leaves a hole before it"),
    ("a number of 5,000 digits", b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}', 4, "a/model.safetensors: not JSON: a number has thousands of digits"),
    ("a number as 1e999", b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', 4, "a/model.safetensors: tensor 'a': shape [inf] is not a list of sizes"),
    ("a field too many", row(code="x"), 4, "a/model.safetensors: tensor 'a': the header row is not {dtype, shape, data_offsets}"),
    ("a field too few", {"a": {"dtype": "F32", "shape": [1]}}, 4, "a/model.safetensors: tensor 'a': the header row is not {dtype, shape, data_offsets}"),
    ("a row that is a list", {"a": ["F32", [1], [0, 4]]}, 4, "a/model.safetensors: tensor 'a': the header row is not {dtype, shape, data_offsets}"),
    ("a row that is null", {"a": None}, 4, "a/model.safetensors: tensor 'a': the header row is not {dtype, shape, data_offsets}"),
    ("an empty name", {"": ROW}, 4, "a/model.safetensors: tensor '': a tensor name is empty, overlong or has control characters"),
    ("a name that climbs", {"../../etc/passwd": ROW}, 4, "a/model.safetensors: tensor '../../etc/passwd': a tensor name looks like a path"),
    ("an absolute name", {"/etc/passwd": ROW}, 4, "a/model.safetensors: tensor '/etc/passwd': a tensor name looks like a path"),
    ("a name with NUL", {"a\0b": ROW}, 4, "a/model.safetensors: tensor 'a\\x00b': a tensor name is empty, overlong or has control characters"),
    ("a name with an escape", {"\x1b[31ma": ROW}, 4, "a/model.safetensors: tensor '\\x1b[31ma': a tensor name is empty, overlong or has control characters"),
    ("a name with a new line", {"a\nfuse: done": ROW}, 4, "a/model.safetensors: tensor 'a\\nfuse: done': a tensor name is empty, overlong or has control characters"),
    ("a name of a megabyte", {"a" * (1 << 20): ROW}, 4, "a/model.safetensors: a tensor name is empty, overlong or has control characters"),
    ("half a surrogate pair", b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', 4, "a/model.safetensors: holds half of a surrogate pair, which is no text"),
    ("two names that look alike", {**{"\u00e9": ROW}, "e\u0301": {**ROW, "data_offsets": [4, 8]}}, 8, "a/model.safetensors: two tensor names are the same text in other code points"),
    ("a name twice", b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}', 4, "a/model.safetensors: key 'a' stands twice in one object"),
    ("a name twice, once escaped", b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "\\u0061": {}}', 4, "a/model.safetensors: key 'a' stands twice in one object"),
    ("a field twice", b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}', 4, "a/model.safetensors: key 'dtype' stands twice in one object"),
    ("metadata that is a list", {"__metadata__": [], "a": ROW}, 4, "a/model.safetensors: __metadata__ is not a table of strings"),
    ("metadata with a number", {"__metadata__": {"a": 1}, "a": ROW}, 4, "a/model.safetensors: __metadata__ is not a table of strings"),
    ("metadata in metadata", {"__metadata__": {"a": {"b": "c"}}, "a": ROW}, 4, "a/model.safetensors: __metadata__ is not a table of strings"),
    ("no tensor", {}, 0, "a/model.safetensors: holds no tensors"),
    ("metadata alone", {"__metadata__": {"format": "pt"}}, 0, "a/model.safetensors: holds no tensors"),
]  # fmt: skip

BYTES: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("empty file", b"", "a/model.safetensors: 0 bytes is too short for a safetensors file"),
    ("seven bytes", b"\2\0\0\0\0\0\0", "a/model.safetensors: 7 bytes is too short for a safetensors file"),
    ("a length alone", b"\2\0\0\0\0\0\0\0", "a/model.safetensors: the header ends at byte 10 of 8: truncated"),
    ("a length of zero", bytes(8), "a/model.safetensors: the header does not begin with '{'"),
    ("a length of 2 to the 63", (1 << 63).to_bytes(8, "little") + b"{}", "a/model.safetensors: a header of 9,223,372,036,854,775,808 bytes is more than 100,000,000"),
    ("a length of -1", b"\xff" * 8 + b"{}", "a/model.safetensors: a header of 18,446,744,073,709,551,615 bytes is more than 100,000,000"),
    ("a length of 100,000,001", (100_000_001).to_bytes(8, "little") + b"{}", "a/model.safetensors: a header of 100,000,001 bytes is more than 100,000,000"),
    ("a length beyond the file", (1000).to_bytes(8, "little") + b"{}", "a/model.safetensors: the header ends at byte 1,008 of 10: truncated"),
    ("not JSON", header(b"{x}"), "a/model.safetensors:1:2: not JSON: Expecting property name enclosed in double quotes"),
    ("an array", header(b"[]"), "a/model.safetensors: the header does not begin with '{'"),
    ("not UTF-8", header(b'{"\xff": 1}'), "a/model.safetensors: not UTF-8 at byte 2"),
    ("tens of millions of lists", lambda: header(b'{"a":[' + b"[]," * 30_000_000 + b"[]]}"), "a/model.safetensors: holds more than 2,400,000 values"),
    ("tens of millions of tables", lambda: header(b'{"a":[' + b"{}," * 30_000_000 + b"{}]}"), "a/model.safetensors: holds more than 2,400,000 values"),
    ("2,400,000 tables", header(b'{"a":[' + b"{}," * 1_190_000 + b"{}]}"), "a/model.safetensors: tensor 'a': the header row is not {dtype, shape, data_offsets}"),
    ("2,000,000 keys", lambda: header(b'{%s}' % b",".join(b'"k%d":1' % i for i in range(2_000_000))), "a/model.safetensors: holds more than 1,000,000 keys"),
    ("a leading space", header(b" {}"), "a/model.safetensors: the header does not begin with '{'"),
    ("a byte order mark", header(b"\xef\xbb\xbf{}"), "a/model.safetensors: the header does not begin with '{'"),
    ("UTF-16", header("{}".encode("utf-16")), "a/model.safetensors: the header does not begin with '{'"),
    ("NaN", header(b'{"a": NaN}'), "a/model.safetensors: NaN is not a JSON number"),
    ("text behind the JSON", header(b'{"a": 1} x'), "a/model.safetensors:1:10: not JSON: Extra data"),
    ("NULs behind the JSON", header(b'{"a": 1}\0\0\0'), "a/model.safetensors:1:9: not JSON: Extra data"),
    ("a comment", header(b'{"a": 1 /* x */}'), "a/model.safetensors:1:9: not JSON: Expecting ',' delimiter"),
    ("100,000 brackets", header(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "a/model.safetensors: nested too deeply"),
    ("100,000 braces", header(b'{"a": ' * 100_000 + b"1" + b"}" * 100_000), "a/model.safetensors: nested too deeply"),
    ("a git-lfs pointer", LFS, "a/model.safetensors: this is a git-lfs pointer, not safetensors (run `git lfs pull` in that folder)"),
    ("a zip archive", b"PK\3\4" + bytes(100), "a/model.safetensors: this is a zip archive, as torch.save makes it, not safetensors (load it with transformers where you trust it, and `save_pretrained`)"),
    ("a page of HTML", b"<!DOCTYPE html><html>Access denied</html>", "a/model.safetensors: this is a page of HTML, not safetensors (download it again)"),
    ("a pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94", "a/model.safetensors: this is a pickle, not safetensors (load it with transformers where you trust it, and `save_pretrained`)"),
    ("900,000 tensors and a broken one", lambda: many(900_000)[:-1] + b" ", "a/model.safetensors: holds more than 2,400,000 values"),
    ("metadata of 10 MB", header({"__metadata__": {"a": "x" * 10_000_000}, "a": ROW}, 5), "a/model.safetensors: the tensors end at byte 10,000,100 but the file has 10,000,101: trailing bytes"),
]  # fmt: skip

FILES = [
    Attack("absent", member(), 3, "a: holds neither model.safetensors nor model.safetensors.index.json"),
    Attack("a directory", member(directory("a/model.safetensors")), 3, "a/model.safetensors: this is not a plain file"),
    Attack("a FIFO", member(fifo("a/model.safetensors")), 3, "a/model.safetensors: this is not a plain file"),
    Attack("a link to /dev/zero", member(link("a/model.safetensors", "/dev/zero")), 3, "a/model.safetensors: is a link out of the folder, to /dev/zero"),
    Attack("a link out of the folder", member(link("a/model.safetensors", "/etc/passwd")), 3, "a/model.safetensors: is a link out of the folder, to /etc/passwd"),
    Attack("a link to itself", member(link("a/model.safetensors", "model.safetensors")), 3, "a/model.safetensors: is a link that leads to itself"),
    Attack("a terabyte of nothing", member(sparse("a/model.safetensors", 1 << 40)), 3, "a/model.safetensors: the header does not begin with '{'"),
    Attack("a terabyte behind a small tensor", member(sparse("a/model.safetensors", 1 << 40, header(row()))), 3, "a/model.safetensors: the tensors end at byte 73 but the file has 1,099,511,627,776: trailing bytes"),
    Attack("a tensor of a terabyte", member(sparse("a/model.safetensors", (1 << 40) + len(HUGE), HUGE)), 3, "a: tensor 'a' is not part of a llama language model"),
    Attack("200,000 tensors", raw_weights(lambda: many(200_000)), 3, "a: tensor 't0' is not part of a llama language model"),
    Attack("200,001 tensors", raw_weights(lambda: many(200_001)), 3, "a/model.safetensors: 200,001 tensors is more than 200,000"),
    Attack("900,000 tensors", raw_weights(lambda: many(900_000)), 3, "a/model.safetensors: holds more than 2,400,000 values"),
    Attack("1,000,001 tensors", raw_weights(lambda: many(1_000_001)), 3, "a/model.safetensors: holds more than 2,400,000 values"),
]  # fmt: skip

CASES = [
    *(Attack(name, weights(table, body), 3, sentence) for name, table, body, sentence in TABLES),
    *(Attack(name, raw_weights(data), 3, sentence) for name, data, sentence in BYTES),
    *FILES,
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refuses(case: Attack, tmp_path: Path) -> None:
    hold(case, tmp_path)
