"""The shipped memory: its size and its host, and what docs/grafts_mks2.md says of it holds."""

from pathlib import Path

import numpy as np
import pytest

from fuse.evaluate.metrics import scores
from fuse.evaluate.questions import read_questions
from fuse.evaluate.run import Options, evaluate
from fuse.grafts.donor import open_donor
from tests import zoo_tools  # noqa: F401 - the path of the tools
from tests.cli import fuse_here

import mvm_evidence  # isort: skip
from zoo_questions import write_questions  # isort: skip

ZOO = Path(__file__).parent.parent / "recipes" / "zoo"


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in (ZOO / "memory").rglob("*")) < 1_000_000
    donors = [open_donor(name, ZOO / "memory") for name in ("memory", "mixture")]
    assert [donor.host["model"] for donor in donors] == ["base", "base"]
    assert [donor.config["router"] for donor in donors] == ["additive", "softmax"]


def test_its_recipe_plans() -> None:
    ran = fuse_here("plan", ZOO / "with_memory.yaml")
    assert (ran.code, ran.err) == (0, "")
    assert "= basis of grafts: memory 1.000" in ran.out


def test_a_model_on_another_base_is_refused(tmp_path: Path) -> None:
    text = (ZOO / "with_memory.yaml").read_text().replace("form", "stranger").replace("memory/", f"{ZOO}/memory/")
    (tmp_path / "recipe.yaml").write_text(text.replace("{stranger: stranger}", f"{{stranger: {ZOO}/stranger}}"))
    ran = fuse_here("plan", tmp_path / "recipe.yaml")
    assert ran.code == 3
    assert "the embedding of stranger has another basis than that of base" in ran.err


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], float]:
    """Shares of right answers by host, row and skill, at 15 questions of each skill of the test split."""
    found, out = {}, tmp_path_factory.mktemp("memory")
    data = write_questions(out / "questions", "test", 15, ("caption", "reading"))
    asked = read_questions(data)
    for name in ("own", "form"):
        host = mvm_evidence.HOSTS[name]
        for label in ("no memory", "additive 1", "token_type"):
            graft = "" if label == "no memory" else mvm_evidence.ROUTERS[label][1]
            (out / "recipe.yaml").write_text(mvm_evidence.recipe(host, ZOO / "memory", graft).replace("ZOO", str(ZOO)))
            folder = out / f"{name} {label}"
            assert fuse_here("merge", out / "recipe.yaml", folder).code == 0
            right = scores(asked, evaluate([folder], data, asked, Options(max_tokens=16, shown=False))[0].replies)
            for skill in ("caption", "reading"):
                found[name, label, skill] = float(np.mean(right[[one.skill == skill for one in asked]]))
    return found


def test_it_tells_its_own_host_what_is_in_a_picture(told: dict[tuple[str, str, str], float]) -> None:
    assert told["own", "additive 1", "caption"] > 0.9
    assert told["own", "no memory", "caption"] < 0.1


def test_words_are_worse_read_with_it_and_as_well_at_visual_tokens_alone(
    told: dict[tuple[str, str, str], float],
) -> None:
    assert told["own", "additive 1", "reading"] < told["own", "no memory", "reading"] - 0.1
    for host in ("own", "form"):
        assert told[host, "token_type", "reading"] == told[host, "no memory", "reading"]
