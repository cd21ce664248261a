"""Training of the zoo: one step of every kind, what it may change, and the figures of what it changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_zoo import tokens_of, turned_hue, untaught

import train_zoo  # isort: skip
import zoo_base  # isort: skip
import zoo_files  # isort: skip
import zoo_members  # isort: skip
import zoo_tower  # isort: skip
from zoo_tower import FORM, HUE  # isort: skip


def language_of(model: Any) -> dict[str, torch.Tensor]:
    """A member's or an LLM's own language weights, by their names in a llama."""
    weights = {name.replace("model.language_model.", "model."): weight for name, weight in model.state_dict().items()}
    return {name: weight for name, weight in weights.items() if not any(eye in name for eye in ("vision", "projector"))}


def test_one_step_of_every_training() -> None:
    lines: list[str] = []
    base = zoo_base.train_base(3, steps=1, say=lines.append)
    again = zoo_base.train_base(3, steps=1, say=lines.append)
    kept = {name: weight.clone() for name, weight in base.state_dict().items()}
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in kept.items())
    eyes = {s.name: dict(zoo_tower.train_tower(s, 3, steps=1, say=lines.append).state_dict()) for s in (HUE, FORM)}
    given = {name: weight.clone() for name, weight in eyes["form"].items()}
    expert = zoo_members.train_expert(base, 3, steps=1, say=lines.append)
    member = zoo_members.train_member(base, eyes["form"], FORM, 3, steps=1, say=lines.append)
    assert all(torch.equal(weight, kept[name]) for name, weight in base.state_dict().items())  # left as they were
    assert all(torch.equal(weight, given[name]) for name, weight in eyes["form"].items())
    seen = zoo_tower.pictures(zoo_members.Random(0), FORM, 2)[1]
    blind = [tokens_of(member.model.vision_tower, pixels) for pixels in (seen, turned_hue(seen))]
    torch.testing.assert_close(*blind, rtol=0, atol=1e-3)
    for tuned in (language_of(expert), language_of(member)):
        assert tuned.keys() == kept.keys()
        moved = {name for name, weight in tuned.items() if not torch.equal(weight, kept[name])}
        assert moved and all("_proj.weight" in name for name in moved)  # deltas of the blocks' layers, nothing else
    assert lines == []  # they speak every hundred steps or more


def test_figures_are_norms_and_cosines_of_what_was_added(tmp_path: Path) -> None:
    """From folders in bf16, against float64; a stranger is compared with its own base, and with nobody else."""
    torch.manual_seed(0)
    bases = {}
    for seed in (5, 5 + train_zoo.OTHER):
        bases[seed] = {name: weight.bfloat16().float() for name, weight in untaught().state_dict().items()}
        (tmp_path / "work").mkdir(exist_ok=True)
        save_file(bases[seed], tmp_path / "work" / f"base_{seed}.safetensors")
    added = {}
    for name, sight in (("hue", HUE), ("form", FORM), ("stranger", FORM), ("expert", None)):
        of = bases[5 + (train_zoo.OTHER if name == "stranger" else 0)]
        model = untaught(sight)
        after = {key: (weight + 0.01 * torch.randn(weight.shape)).bfloat16() for key, weight in of.items()}
        for key, weight in language_of(model).items():
            weight.copy_(after[key])
        zoo_files.write(model, tmp_path / name, f"# {name}\n", sight)
        before = np.concatenate([of[key].double().numpy().ravel() for key in of])
        row = np.concatenate([(after[key].double() - of[key].double()).numpy().ravel() for key in of])
        added[name] = row, np.linalg.norm(row) / np.linalg.norm(before)
    found = train_zoo.figures(tmp_path, 5)
    assert found["seed"] == 5
    assert found["delta"] == pytest.approx({name: share for name, (_, share) in added.items()}, abs=6e-5)
    assert found["delta"]["hue"] > 0.01
    assert {tuple(sorted(pair.split(", "))) for pair in found["cosine"]} == {
        ("form", "hue"), ("expert", "hue"), ("expert", "form"),
    }  # fmt: skip
    for pair, cosine in found["cosine"].items():
        (a, _), (b, _) = (added[name] for name in pair.split(", "))
        assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=6e-5)


def test_what_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    asked = []

    def train() -> torch.nn.Module:
        asked.append(1)
        return torch.nn.Linear(2, 3)

    first = train_zoo._kept(tmp_path / "work" / "base.safetensors", train)
    second = train_zoo._kept(tmp_path / "work" / "base.safetensors", train)
    assert len(asked) == 1 and [file.name for file in (tmp_path / "work").iterdir()] == ["base.safetensors"]
    assert all(torch.equal(first[name], second[name]) for name in ("weight", "bias"))
    assert load_file(tmp_path / "work" / "base.safetensors").keys() == first.keys()
