"""A short run of the fuzzer, and that it would tell."""

import base64
import json
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from fuse.errors import CheckpointError
from tests import zoo_tools  # noqa: F401

import fuzz  # isort: skip
import fuzz_readers  # isort: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzz_readers.Reader]:
    return fuzz_readers.readers(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", fuzz.SHARES)
def test_every_input_is_a_value_or_one_error(table: dict[str, fuzz_readers.Reader], name: str) -> None:
    told = fuzz.fuzz(name, table[name], 120, first_seed=7)
    assert told.pop("crashes") == []
    assert told["inputs"] == told["value"] + told["refused"] >= 120
    assert told["value"] and told["refused"] and told["slowest_s"] < fuzz.SECONDS


def test_valid_documents_are_accepted(table: dict[str, fuzz_readers.Reader]) -> None:
    valid = {
        "header": fuzz_readers.packed({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"ab"),
        "index": json.dumps({"weight_map": fuzz_readers.SHARDS}).encode(),
        "config": b"llama\n" + json.dumps(fuzz_readers.LLAMA).encode(),
        "tokenizer": b"\0" + json.dumps(fuzz_readers.FAST).encode(),
    }
    valid |= {f"recipe {i}": text for i, text in enumerate(fuzz_readers._texts)}
    for name, data in valid.items():
        assert fuzz.attempt(table[name.split()[0]], data) == "value", name


TEMPLATES = {"chat_template": [{"name": [""], "template": "x"}], "added_tokens_decoder": {}}
# what a reader once did otherwise: the reader, its input, what it does now
FOUND = {
    "a dtype that is a list": ("header", fuzz_readers.packed(
        {"a": {"dtype": ["F64"], "shape": [], "data_offsets": [0, 8]}}, bytes(8)), "refused"),
    "a recipe of brackets": ("recipe", b"[" * 100_000, "refused"),
    "a template whose name is a list": ("tokenizer", b"\3" + json.dumps(TEMPLATES).encode(), "value"),
    "a number without end": ("tokenizer", b"\2" + b"\xff" * 4_000_000, "refused"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_stays_mended(table: dict[str, fuzz_readers.Reader], case: str) -> None:
    name, data, outcome = FOUND[case]
    assert fuzz.attempt(table[name], data) == outcome


def _raises(_data: bytes) -> Any:
    raise KeyError("shape")


def _hangs(_data: bytes) -> Any:
    time.sleep(60)


def _works(_data: bytes) -> Any:
    while True:
        pass


def _drives(_data: bytes) -> Any:
    raise CheckpointError("")


BROKEN = {
    "another error": (_raises, "KeyError: 'shape' (test_fuzz.py: _raises)"),
    "endless": (_works, "takes more than 0.2 s"),
    "asleep": (_hangs, "takes more than 0.2 s"),
    "no sentence": (_drives, "refuses with '' and exit code 3"),
    "another value": (lambda data: data, "not confirmed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_broken_reader_does_is_found(
    table: dict[str, fuzz_readers.Reader], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz, "MOST_CRASHES", 1)
    read, told = BROKEN[case]
    broken = fuzz_readers.Reader(table["header"].inputs, read, lambda data, value: "not confirmed")
    if "takes" in told:  # making it small would take minutes
        with pytest.raises(fuzz.Strange, match=told):
            fuzz.attempt(broken, b"")
        return
    (crash,) = fuzz.fuzz("header", broken, 20, first_seed=0)["crashes"]
    assert (crash["reader"], crash["what"]) == ("header", told)
    assert len(zlib.decompress(base64.b64decode(crash["input"]))) < 20


def test_safetensors_is_asked(table: dict[str, fuzz_readers.Reader]) -> None:
    """An entry that lies about its bytes is told by the oracle."""
    good = fuzz_readers.packed({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"ab")
    other = fuzz_readers.packed({"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}, b"ab")
    lying = fuzz_readers.Reader(table["header"].inputs, lambda _: table["header"].read(other), table["header"].agrees)
    with pytest.raises(fuzz.Strange, match="safetensors reads"):
        fuzz.attempt(lying, good)


def test_the_document(tmp_path: Path) -> None:
    """What the command prints is one JSON document, and the same seed counts the same."""
    import subprocess
    import sys

    command = [sys.executable, "tools/fuzz.py", "--inputs", "40", "--reader", "header", "--seed", "3"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["inputs"] == told["readers"]["header"]["inputs"] == 40 and told["crashes"] == []
