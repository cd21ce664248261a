"""docs/reliability.md is what the soak's JSON says, and what is broken cannot hide in it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import reliability_report  # isort: skip

ROOT = Path(__file__).parents[1]
ROW = {"tried": 1200, "outcomes": {"killed, absent": 1000, "killed, output whole": 200}, "again": 1200,
       "again_whole": 1100, "files_kept": 900, "tracebacks": 0, "partial_for_whole": 0, "lost": 0, "other": 0,
       "told": [], "seconds": 90}  # fmt: skip
MACHINE = {"processor": "A", "cores": 2, "memory": 8 << 30, "python": "3.11.7", "packages": {"torch": "2.13.0"}}


def test_a_row_and_the_sums() -> None:
    page = reliability_report.page(
        {"machine": MACHINE, "groups": {"killed": ROW, "cut": ROW | {"lost": 3, "other": 1}}}
    )
    assert (
        "| `kill -9` before every call that changes a file | 1,200 | killed, absent 1,000; killed, output whole 200 | "
        "1,100 of 1,200, 900 finished files kept | 0 |" in page
    )
    assert "900 finished files kept | 4 |" in page
    assert (
        "2,400 in all: 0 tracebacks, 0 partial outputs taken for whole ones, 3 outputs or inputs lost, 1 other" in page
    )
    assert "3 minutes on 2 cores (A, 8 GiB), Python 3.11.7, torch 2.13.0." in page


def test_the_page_is_of_the_figures() -> None:
    docs = ROOT / "docs"
    if not (docs / "reliability.json").exists():
        pytest.skip("no soak has been run")
    told = json.loads((docs / "reliability.json").read_text())
    assert (docs / "reliability.md").read_text() == reliability_report.page(told)
    assert set(told["groups"]) <= set(reliability_report.WORDS)
    assert not any(row[key] for row in told["groups"].values() for key in ("tracebacks", "partial_for_whole", "lost"))


def test_rows_say_on_which_code_they_ran() -> None:
    row = ROW | {"tree": "abc1234", "date": "2026-11-22"}
    page = reliability_report.page({"machine": MACHINE, "groups": {"killed": ROW, "cut": row, "imports": row}})
    lines = page[page.index("Groups of `tools/soak.py`") :].splitlines()[2:4]
    assert lines == ["- 2026-11-22, at abc1234: `cut`, `imports`", "- the others earlier, each once"]
    assert "Groups of" not in reliability_report.page({"machine": MACHINE, "groups": {"killed": ROW}})
