"""SECURITY.md names tests that exist, and the keys and sizes that the code has."""

import re
from pathlib import Path

from fuse import recipe_yaml, strict_json
from fuse.code_keys import CODE_KEYS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "SECURITY.md").read_text()


def test_every_promise_names_tests_that_exist() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 8
    for row in rows:
        named = re.findall(r"`(tests/[\w/.]+)`", row[3])
        assert named, row[1]
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_what_it_says_is_left_out_is() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| No code travels on"))
    assert set(re.findall(r"`(\w+)`", row)) >= CODE_KEYS


def test_sizes() -> None:
    assert (strict_json.MAX_BYTES, recipe_yaml.MAX_BYTES) == (100_000_000, 1 << 18)
    assert "Small files have at most 100 MB, configs 16 MiB, recipes 256 KiB" in PAGE


def test_it_is_one_page_and_linked() -> None:
    assert len(PAGE.split()) < 900
    assert "[Security](SECURITY.md)" in (ROOT / "README.md").read_text()
