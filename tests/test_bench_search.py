"""The benchmark of a search's step: what it writes, not how fast anything is."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))  # the tools are scripts, which import siblings

import bench_search


def test_times_a_step_beside_a_merge_and_a_load(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    ran = CliRunner().invoke(
        bench_search.main, ["--runs", "2", "--method", "linear", "--method", "slerp", "--json", str(file)]
    )
    assert ran.exit_code == 0, ran.output
    told = json.loads(file.read_text())
    assert set(told["methods"]) == {"linear", "slerp"}
    for row in told["methods"].values():
        for kind in ("clock", "cpu"):
            times = {key: [run[kind] for run in row["runs"][key]] for key in ("plan", "remix", "merge", "load")}
            assert all(len(found) == 2 and min(found) > 0 for found in times.values())
            whole = sum(times["merge"]) + sum(times["load"])
            assert row[kind]["ratio"] == pytest.approx(whole / sum(times["remix"]))
    assert "every model bit-identical" in ran.output


def test_a_recipe_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("members: {a: x}\nlanguage: {method: linaer, weights: 1}\n")
    ran = CliRunner().invoke(bench_search.main, [str(tmp_path / "r.yaml")])
    wanted = "r.yaml:2:12: language.method: unknown method 'linaer' (did you mean: linear)"
    assert (ran.exit_code, ran.output) == (2, f"bench_search: {wanted}\n")
