"""Folders whose index, or the shards that it names, are hostile."""

import json
from pathlib import Path

import pytest

from tests.attacks.harness import Attack, hold
from tests.attacks.making import ROW, Make, both, directory, fifo, file, header, link, member, sparse

NAME = "a/model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MAP = {"x": ONE, "y": TWO}


def shards(index: object, *more: Make, one: object = None, two: object = None) -> Make:
    """A member of two shards, `x` in one and `y` in the other, with that index."""
    return member(
        file(f"a/{ONE}", header(one or {"x": ROW}, 4)), file(f"a/{TWO}", header(two or {"y": ROW}, 4)),
        file(NAME, index), *more,
    )  # fmt: skip


def mapped(weight_map: object, **more: object) -> dict[str, object]:
    return {"metadata": {"total_size": 8}, "weight_map": weight_map, **more}


SHARDS = [
    ("a shard above", "../model.safetensors"), ("a shard far above", "../../../../etc/passwd.safetensors"),
    ("an absolute shard", "/etc/passwd"), ("an absolute shard of weights", "/tmp/x.safetensors"),
    ("a shard on a drive", "C:\\x.safetensors"), ("a shard with a backslash", "..\\x.safetensors"),
    ("a shard in a folder", "sub/x.safetensors"), ("a shard at an address", "https://evil.example/x.safetensors"),
    ("a shard at a file address", "file:///etc/x.safetensors"), ("a shard that is a pickle", "pytorch_model.bin"),
    ("a shard with NUL", "x\0.safetensors"), ("a shard with a new line", "x\n.safetensors"),
    ("a shard with an escape", "\x1b[31mx.safetensors"), ("a shard that turns the line", "\u202ex.safetensors"),
    ("an empty shard", ""), ("a shard of dots", ".."), ("a shard of a suffix", ".safetensors"),
    ("a shard of 300 letters", "s" * 300 + ".safetensors"), ("a shard of a megabyte", "s" * (1 << 20) + ".safetensors"),
    ("a shard that is a number", 3), ("a shard that is null", None), ("a shard that is a list", [ONE]),
    ("a shard that is a table", {"file": ONE}), ("a shard that is true", True),
    ("a missing shard", "model-00003-of-00003.safetensors"), ("a home", "~/x.safetensors"),
    ("a variable", "$HOME.safetensors"), ("an option", "--x.safetensors"),
]  # fmt: skip
ODD = "a/model.safetensors.index.json: shard name {} of tensor 'x' is not a plain file name"
# those whose sentence is another, or whose name is too long for it
TOLD = {
    "a shard of 300 letters": ODD.format("'" + "s" * 56 + "..."),
    "a shard of a megabyte": ODD.format("'" + "s" * 56 + "..."),
    "a missing shard": "a/model-00003-of-00003.safetensors: the file is missing",
    "an option": "a/--x.safetensors: the file is missing",
}

TABLES: list[tuple[str, object, str]] = [
    ("a map that is a list", mapped([ONE, TWO]), "a/model.safetensors.index.json: weight_map is not a table of tensor names"),
    ("a map that is text", mapped("x"), "a/model.safetensors.index.json: weight_map is not a table of tensor names"),
    ("an empty map", mapped({}), "a/model.safetensors.index.json: weight_map is not a table of tensor names"),
    ("no map", {"metadata": {"total_size": 8}}, "a/model.safetensors.index.json: weight_map is not a table of tensor names"),
    ("an index that is a list", [MAP], "a/model.safetensors.index.json: holds a JSON list, not an object"),
    ("an index that is null", b"null", "a/model.safetensors.index.json: holds null, not an object"),
    ("an empty index", b"", "a/model.safetensors.index.json: the file is empty"),
    ("an index that is not JSON", b"{", "a/model.safetensors.index.json:1:2: not JSON: Expecting property name enclosed in double quotes"),
    ("an index of latin-1", b'{"weight_map": {"\xe9": "x"}}', "a/model.safetensors.index.json: not UTF-8 at byte 17"),
    ("an index with a byte order mark", b"\xef\xbb\xbf" + json.dumps(mapped(MAP)).encode(), "a/model.safetensors.index.json: begins with a byte order mark (save it as UTF-8 without BOM)"),
    ("an index with NaN", b'{"metadata": {"total_size": NaN}, "weight_map": {"x": "x.safetensors"}}', "a/model.safetensors.index.json: NaN is not a JSON number"),
    ("an index nested deeply", b'{"weight_map": ' + b"[" * 100_000, "a/model.safetensors.index.json: nested too deeply"),
    ("a tensor twice", f'{{"weight_map": {{"x": "{ONE}", "x": "{TWO}", "y": "{TWO}"}}}}', "a/model.safetensors.index.json: key 'x' stands twice in one object"),
    ("a map twice", f'{{"weight_map": {{"x": "{ONE}"}}, "weight_map": {{"y": "{TWO}"}}}}', "a/model.safetensors.index.json: key 'weight_map' stands twice in one object"),
    ("a tensor that no shard has", mapped({**MAP, "z": ONE}), "a/model.safetensors.index.json: tensor 'z' is not in model-00001-of-00002.safetensors (1 missing in all)"),
    ("a tensor in another shard", mapped({"x": TWO, "y": ONE}), "a/model.safetensors.index.json: tensor 'x' is in model-00001-of-00002.safetensors but the index puts it in model-00002-of-00002.safetensors"),
    ("a tensor that is not in the map", mapped({"y": TWO}), "a/model.safetensors.index.json: shard 'model-00001-of-00002.safetensors' is in the folder but not in the index"),
    ("a name of a tensor with an escape", mapped({**MAP, "\x1b[31mz\nfuse: done": ONE}), "a/model.safetensors.index.json: tensor '\\x1b[31mz\\nfuse: done' is not in model-00001-of-00002.safetensors (1 missing in all)"),
    ("a name of a tensor of a megabyte", mapped({**MAP, "z" * (1 << 20): ONE}), "a/model.safetensors.index.json: tensor name 'zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz... has more than 1,024 characters"),
    ("990,000 entries", lambda: mapped({f"t{i}": ONE for i in range(990_000)}), "a/model.safetensors.index.json: tensor 'x' is in model-00001-of-00002.safetensors but not indexed"),
    ("990,000 shards", lambda: mapped({f"t{i}": f"s{i}.safetensors" for i in range(990_000)}), "a/model.safetensors.index.json: names 990,000 files of weights, more than 10,000"),
    ("ten thousand and one shards", mapped({f"t{i}": f"s{i}.safetensors" for i in range(10_001)}), "a/model.safetensors.index.json: names 10,001 files of weights, more than 10,000"),
]  # fmt: skip

FILES = [
    Attack("a tensor in two shards", shards(mapped(MAP), file(f"a/{TWO}", header({"x": ROW, "y": {**ROW, "data_offsets": [4, 8]}}, 8))), 3, "a/model.safetensors.index.json: tensor 'x' is in model-00002-of-00002.safetensors but the index puts it in model-00001-of-00002.safetensors"),
    Attack("a shard beside the map", shards(mapped(MAP), file("a/model-00003-of-00002.safetensors", header({"z": ROW}, 4))), 3, "a/model.safetensors.index.json: shard 'model-00003-of-00002.safetensors' is in the folder but not in the index"),
    Attack("one file beside the index", shards(mapped(MAP), file("a/model.safetensors", header({"z": ROW}, 4))), 3, "a: both model.safetensors and model.safetensors.index.json are there (remove the stale one)"),
    Attack("a shard that is a folder", shards(mapped({"x": "d.safetensors"}), directory("a/d.safetensors")), 3, "a/d.safetensors: this is not a plain file"),
    Attack("a shard that is a FIFO", shards(mapped({"x": "d.safetensors"}), fifo("a/d.safetensors")), 3, "a/d.safetensors: this is not a plain file"),
    Attack("a shard that is /dev/zero", shards(mapped({"x": "d.safetensors"}), link("a/d.safetensors", "/dev/zero")), 3, "a/d.safetensors: is a link out of the folder, to /dev/zero"),
    Attack("a shard that leads out", shards(mapped({"x": "d.safetensors"}), file("d.safetensors", header({"x": ROW}, 4)), link("a/d.safetensors", "../d.safetensors")), 3, "a/d.safetensors: is a link out of the folder, to ./d.safetensors"),
    Attack("a shard that leads out by a folder", shards(mapped({"x": "d.safetensors"}), file("blobs/d.safetensors", header({"x": ROW}, 4)), link("a/d.safetensors", "../blobs/../blobs/d.safetensors")), 3, "a/d.safetensors: is a link out of the folder, to ./blobs/d.safetensors"),
    Attack("a shard that leads to itself", shards(mapped({"x": "d.safetensors"}), link("a/d.safetensors", "d.safetensors")), 3, "a/d.safetensors: is a link that leads to itself"),
    Attack("a shard that leads nowhere", shards(mapped({"x": "d.safetensors"}), link("a/d.safetensors", "none")), 3, "a/d.safetensors: the file is missing"),
    Attack("a shard that is a git-lfs pointer", shards(mapped(MAP), file(f"a/{TWO}", b"version https://git-lfs.github.com/spec/v1\n")), 3, "a/model-00002-of-00002.safetensors: this is a git-lfs pointer, not safetensors (run `git lfs pull` in that folder)"),
    Attack("a shard that is empty", shards(mapped(MAP), file(f"a/{TWO}", b"")), 3, "a/model-00002-of-00002.safetensors: 0 bytes is too short for a safetensors file"),
    Attack("an index that is a folder", member(directory(NAME)), 3, "a/model.safetensors.index.json: this is not a plain file"),
    Attack("an index that is a FIFO", member(fifo(NAME)), 3, "a/model.safetensors.index.json: this is not a plain file"),
    Attack("an index that is /dev/zero", member(link(NAME, "/dev/zero")), 3, "a/model.safetensors.index.json: is a link out of the folder, to /dev/zero"),
    Attack("an index that leads to itself", member(link(NAME, "model.safetensors.index.json")), 3, "a/model.safetensors.index.json: is a link that leads to itself"),
    Attack("an index that leads out", both(file("i.json", mapped(MAP)), member(link(NAME, "../i.json"))), 3, "a/model.safetensors.index.json: is a link out of the folder, to ./i.json"),
    Attack("an index of a terabyte", member(sparse(NAME, 1 << 40)), 3, "a/model.safetensors.index.json: 1,099,511,627,776 bytes is more than the 100,000,000 that fuse reads"),
    Attack("an index of 99 MB of brackets", member(file(NAME, lambda: b"[" * 99_000_000)), 3, "a/model.safetensors.index.json: holds more than 2,400,000 values"),
    Attack("an index of 99 MB of blanks", member(file(NAME, lambda: b" " * 99_000_000)), 3, "a/model.safetensors.index.json: the file is empty"),
    Attack("an index of 99 MB of a text", member(file(NAME, lambda: b'{"weight_map": "' + b"\\\\" * 49_000_000 + b'"}')), 3, "a/model.safetensors.index.json: weight_map is not a table of tensor names"),
]  # fmt: skip

CASES = [
    *(
        Attack(name, shards(mapped({**MAP, "x": shard})), 3, TOLD.get(name) or ODD.format(repr(shard)))
        for name, shard in SHARDS
    ),
    *(Attack(name, shards(index), 3, sentence) for name, index, sentence in TABLES),
    *FILES,
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refuses(case: Attack, tmp_path: Path) -> None:
    hold(case, tmp_path)
