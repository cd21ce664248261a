"""The tool that asks what bridges carry: its facts, its lessons, and models in other axes that say the same."""

from pathlib import Path
from random import Random

import torch
from transformers import LlamaForCausalLM

from fuse.recipe_yaml import parse_recipe
from tests import zoo_tools  # noqa: F401 - the path of the tools

import bridge_evidence  # isort: skip
from zoo_text import UNSEEN  # isort: skip

ZOO = Path(__file__).parent.parent / "recipes" / "zoo"


def test_lessons_end_with_what_is_taught() -> None:
    ids, labels = bridge_evidence.lesson(Random(3))
    assert len(ids) == len(labels)
    taught = [(a, b) for a, b in zip(ids, labels, strict=True) if b != UNSEEN]
    assert len(taught) == 8  # four answers, each with its end
    assert all(a == b for a, b in taught)
    assert len(bridge_evidence.FACTS) == 24


def test_a_model_in_other_axes_says_the_same(tmp_path: Path) -> None:
    bridge_evidence.turned(ZOO / "base", tmp_path / "turned")
    models = [LlamaForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (ZOO / "base", tmp_path / "turned")]
    assert not torch.allclose(*(model.model.embed_tokens.weight for model in models), atol=0.01)
    ids = torch.arange(6, 26)[None]
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids).logits for model in models)
    assert (ours - theirs).abs().max() < 1e-3 * ours.abs().max()


def test_every_row_is_a_recipe() -> None:
    rows = bridge_evidence.rows({"base": Path("base"), "apart": Path("apart")})
    assert [label for label, (_, graft) in rows.items() if not graft] == ["base", "apart"]
    for model, graft in rows.values():
        text = f"members: {{llm: {model}}}\nlanguage: {{method: linear, weights: {{llm: 1}}}}\n"
        text += f"grafts:\n  - {{name: facts, {graft}}}\n" if graft else ""
        assert len(parse_recipe(Path("row.yaml"), text).recipe.grafts) == bool(graft)
