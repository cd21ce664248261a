"""The harness itself: it must be able to fail, and say what the command said."""

from pathlib import Path

import pytest

from tests.attacks import harness
from tests.attacks.harness import Attack, Ran, attack, hold, listing, refused, within

SAID = "recipe.yaml: there is no such file"


def test_a_refusal_is_held(tmp_path: Path) -> None:
    ran = hold(Attack("absent", lambda folder: None, 2, SAID), tmp_path)
    assert ran.cpu < 1 and ran.peak > 50 << 20


@pytest.mark.parametrize(("code", "sentence"), [(3, SAID), (2, "there is no such")])
def test_another_answer_fails(tmp_path: Path, code: int, sentence: str) -> None:
    with pytest.raises(AssertionError):
        hold(Attack("absent", lambda folder: None, code, sentence), tmp_path)


def test_what_is_left_behind_fails(tmp_path: Path) -> None:
    before = listing(tmp_path)
    ran = attack("plan recipe.yaml", tmp_path)
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(AssertionError, match="left behind"):
        refused(ran, 2, SAID, tmp_path, before)


def test_a_command_runs_as_ever(family: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"members: {{a: {family}/a, b: {family}/b}}\nlanguage: {{method: linear, weights: 0.5}}\n"
    )
    ran = attack("merge recipe.yaml out --quiet", tmp_path)
    assert (ran.code, ran.err) == (0, "") and "21 tensors merged" in ran.out
    assert (tmp_path / "out" / "model.safetensors").exists()
    within(ran)


def test_limits_and_environment(tmp_path: Path) -> None:
    ran = attack("plan /dev/zero", tmp_path, env={"HOME": "/nowhere"}, limits={"NOFILE": 64})
    assert ran.code == 2 and ran.err.startswith("fuse: /dev/zero: ")


def test_a_slow_machine_has_longer_and_no_more() -> None:
    slow = harness.slowness()
    assert slow >= 1
    within(Ran(0, "", "", 1, 4.9, 1))
    with pytest.raises(AssertionError, match=r"took \d+\.\d s of the processor"):
        within(Ran(0, "", "", 1, 3 * harness.MOST_SECONDS * slow, 1))
