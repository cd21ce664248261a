"""A stack of layers in memory: `fuse search` changes its numbers in place."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from fuse.live import Live
from fuse.recipe_yaml import parse_recipe
from tests import tiny_text
from tests.cli import fuse_here
from tests.members import perturbed, save_member


def test_numbers_of_a_stack_change_in_place(tmp_path: Path) -> None:
    model = tiny_text.build("llama", bos_token_id=1, eos_token_id=2)
    for seed, name in enumerate("ab"):
        save_member(perturbed(model, seed), tmp_path / name, dtype=torch.bfloat16)
    text = (
        "members: {{a: a, b: b}}\nlanguage: {{method: linear, weights: {{a: {}, b: 1}}, "
        "layers: [{{a: [0, 2]}}, {{a: [1, 2], b: [0, 1]}}]}}\n"
    )
    live = Live(parse_recipe(tmp_path / "r.yaml", text.format(1)))
    assert live.remix(parse_recipe(tmp_path / "r.yaml", text.format(3))) is False
    (tmp_path / "r.yaml").write_text(text.format(3))
    assert fuse_here("merge", tmp_path / "r.yaml", tmp_path / "out").code == 0
    wanted = load_file(tmp_path / "out" / "model.safetensors")
    held = live.answerer.model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in wanted.items())
    deeper = text.replace("a: [0, 2]", "a: [0, 1]")
    assert live.remix(parse_recipe(tmp_path / "r.yaml", deeper.format(3))) is True
    assert len(live.answerer.model.model.layers) == 2
