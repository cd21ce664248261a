"""The rank correlation against scipy, and which pairs of zoos are validated."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats

from tests import zoo_tools  # noqa: F401 - the path of the tools

import rank_correlation  # isort: skip
import stretched  # isort: skip
import validate_inspect  # isort: skip

numbers = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12)


@settings(deadline=None, max_examples=30)
@given(numbers)
def test_scipy_finds_the_same(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)
    np.testing.assert_allclose(rank_correlation.ranks(x), stats.rankdata(x))
    found = rank_correlation.correlation(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found == {"rho": None, "p": None, "n": len(x)}
    else:
        assert found["rho"] == pytest.approx(stats.spearmanr(x, y).statistic) and 0 < found["p"] <= 1


def test_p_of_all_permutations() -> None:
    assert rank_correlation.correlation([1, 2, 3], [2, 4, 9]) == {
        "rho": pytest.approx(1),
        "p": pytest.approx(2 / 6),
        "n": 3,
    }
    assert rank_correlation.correlation([1, 2, 3, 4], [4, 3, 2, 1])["p"] == pytest.approx(2 / 24)
    assert rank_correlation.correlation(range(20), range(20))["p"] == pytest.approx(1 / 20_001)
    assert rank_correlation.correlation([1, 2], [1, 2])["rho"] is None


def zoo(folder: Path, *members: str) -> Path:
    for name in members:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    return folder


def test_pairs_of_zoos(tmp_path: Path) -> None:
    zoos = [zoo(tmp_path / "one", "hue", "form", "stranger", "base"), zoo(tmp_path / "two", "hue", "form", "work")]
    within = list(validate_inspect.pairs_of(zoos, across=False, stretches=None))
    assert [(pair.zoo, pair.names, pair.family) for pair in within] == [
        ("one", ("hue", "form"), True), ("one", ("hue", "stranger"), False), ("one", ("form", "stranger"), False),
        ("two", ("hue", "form"), True),
    ]  # fmt: skip
    assert [pair.joint for pair in within] == ["color+shape", "color+shape", "", "color+shape"]
    across = list(validate_inspect.pairs_of(zoos, across=True, stretches=None))[4:]
    assert [(pair.zoo, pair.family, pair.base) for pair in across] == [
        ("one, two", False, zoos[0] / "base"), ("two, one", False, zoos[1] / "base"),
    ]  # fmt: skip


def test_a_copy_is_stretched(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "form").mkdir()
    before, after, eye = (torch.randn(3, 4).bfloat16() for _ in range(3))
    save_file({"w": before}, tmp_path / "base" / "model.safetensors")
    save_file({"language_model.w": after, "eye": eye}, tmp_path / "form" / "model.safetensors")
    (tmp_path / "form" / "config.json").write_text("{}")
    out = stretched.stretched(tmp_path / "form", tmp_path / "base", 4, tmp_path / "long" / "form")
    found = load_file(out / "model.safetensors")
    expected = before.double().numpy() + 4 * (after.double().numpy() - before.double().numpy())
    np.testing.assert_allclose(found["language_model.w"].double().numpy(), expected, rtol=2**-8)
    assert torch.equal(found["eye"], eye) and (out / "config.json").is_file()


def test_what_goes_with_what() -> None:
    def row(score: float, gain: float, both: float | None) -> dict:
        parts = {name: {"value": None if name == "space" else score} for name in validate_inspect.PARTS}
        return {"zoo": "z", "a": "hue", "b": "form", "inspect": {"score": score, "fit": 1, "parts": parts},
                "gains": {"all": gain, "both": both}}  # fmt: skip

    rows = [row(0.1, -1, None), row(0.3, 5, 2), row(0.2, 2, 3)]
    found = validate_inspect.correlations(rows)
    assert found["score"]["all"]["rho"] == pytest.approx(1) and found["score"]["both"] == {
        "rho": None,
        "p": None,
        "n": 2,
    }
    assert found["fit"]["all"]["rho"] is None and found["space"]["all"]["n"] == 0
    lines = validate_inspect.table(rows)
    assert lines[2] == "| z | hue, form | 0.30 | 1.00 | 0.30 | 0.30 | 0.30 | 0.30 |  | 0.30 | +5.0 | +2.0 |  |"
    assert validate_inspect.table_of({"z": found})[2].startswith("| z: all | +1.00 (p 0.33, n 3) | - (n 3) |")
