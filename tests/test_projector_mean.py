"""Several projectors in a recipe, averaged tensor by tensor: values, plan, and what cannot be averaged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.recipe_edit import recipe_text
from fuse.recipe_yaml import load_recipe
from tests import recipe_members, tiny_clipcap
from tests.cli import Ran, fuse_here

HEAD = "members: {gpt: gpt}\nlanguage: {method: linear, weights: 1}\nvision: [{name: clip, encoder: clip, projector: "


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, a CLIP and ClipCap's mappers of several kinds, and linear projectors."""
    folder = tmp_path_factory.mktemp("mean")
    recipe_members.save_encoder(folder / "clip")
    host = json.loads((recipe_members.save("gpt2", folder / "gpt", 0) / "config.json").read_text())
    for seed, name in enumerate("abc"):
        tiny_clipcap.donor(folder / name, host, seed=seed)
    tiny_clipcap.donor(folder / "t", host, "clipcap_transformer")
    told = json.loads((folder / "c" / "projector.json").read_text())
    told["config"]["normalize"] = True
    (folder / "c" / "projector.json").write_text(json.dumps(told))
    generator = torch.Generator().manual_seed(1)
    for name, inner in (("p", 24), ("q", 24), ("r", 20)):
        shapes = {"0.weight": (inner, 12), "0.bias": (inner,), "2.weight": (32, inner), "2.bias": (32,)}
        save_file({k: torch.randn(s, generator=generator) for k, s in shapes.items()}, folder / f"{name}.safetensors")
    return folder


def merged(place: Path, tmp_path: Path, projector: str) -> Ran:
    (place / "recipe.yaml").write_text(f"{HEAD}{projector}}}]\n")
    return fuse_here("merge", place / "recipe.yaml", tmp_path / "out")


@pytest.mark.parametrize(
    ("one", "other", "end"), [("a", "b", "projector.safetensors"), ("p.safetensors", "q.safetensors", "")]
)
def test_the_mean_by_weight(place: Path, tmp_path: Path, one: str, other: str, end: str) -> None:
    ran = merged(place, tmp_path, f"[{{path: {one}, weight: 3}}, {{path: {other}}}]")
    assert (ran.code, ran.err) == (0, ""), ran
    found = load_file(tmp_path / "out" / "model.safetensors")
    first, second = (load_file(place / name / end if end else place / name) for name in (one, other))
    for name, tensor in first.items():
        wanted = (3 * tensor.double().numpy() + second[name].double().numpy()) / 4
        np.testing.assert_allclose(found[f"branches.clip.projector.{name}"], wanted, atol=1e-6)
    plan = fuse_here("plan", place / "recipe.yaml")
    assert "  linear of clip.projector + clip.projector.2 [weights 3/1]" in plan.out
    told = json.loads((tmp_path / "out" / "fuse.json").read_text())
    assert {"clip.projector", "clip.projector.2"} <= set(json.dumps(told).replace('"', " ").split())


LINEAR = "linear: the weights sum to zero, so normalize cannot divide by their sum"
WRONG = {
    "of another kind": (
        "[{path: a}, {path: t}]", 3, "PLACE/t/projector.json: is another projector than PLACE/a/projector.json: "
        "clipcap_transformer, not clipcap_mlp (projectors of one kind and config can be averaged)",
    ),
    "of another config": (
        "[{path: a}, {path: c}]", 3, "PLACE/c/projector.json: is another projector than PLACE/a/projector.json: "
        "normalize is True, not False (projectors of one kind and config can be averaged)",
    ),
    "of other sizes": (
        "[{path: p.safetensors}, {path: r.safetensors}]", 3, "PLACE/r.safetensors: is another projector than "
        "PLACE/p.safetensors: linear layers of other sizes (projectors of one kind and config can be averaged)",
    ),
    "a file and a folder": (
        "[{path: p.safetensors}, {path: a}]", 3, "PLACE/a/projector.json: is another projector than "
        "PLACE/p.safetensors: clipcap_mlp, not linear layers (projectors of one kind and config can be averaged)",
    ),
    "nowhere": (
        "[{path: a}, {path: z}]", 2, "recipe.yaml:3:10: vision.0: PLACE/z: there is no such file (`projector` is one "
        "safetensors file)",
    ),
    "nothing": ("[{path: a, weight: 1}, {path: b, weight: -1}]", 2, f"recipe.yaml:3:38: vision.0.projector: {LINEAR}"),
    "one": ("[{path: a}]", 2, "recipe.yaml:3:38: vision.0.projector: should have 2 or more entries, and has 1"),
    "a number": ("3", 2, "recipe.yaml:3:38: vision.0.projector: should be a valid string, not 3"),
    "no path": ("[{path: a}, {weight: 1}]", 2, "recipe.yaml:3:61: vision.0.projector.1.path: is missing"),
    "a key": ("[{path: a}, {path: b, wight: 1}]", 2, "recipe.yaml:3:71: vision.0.projector.1.wight: unknown key (did you mean: weight)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_averaged(place: Path, tmp_path: Path, case: str) -> None:
    given, code, told = WRONG[case]
    ran = merged(place, tmp_path, given)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("fuse: " + told.replace("PLACE", str(place))), ran.err
    assert ran.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_recipe_that_moves_keeps_its_paths(place: Path, tmp_path: Path) -> None:
    (place / "recipe.yaml").write_text(f"{HEAD}[{{path: a}}, {{path: b, weight: 2}}]}}]\n")
    text = recipe_text(load_recipe(place / "recipe.yaml"), tmp_path)
    (tmp_path / "moved.yaml").write_text(text)
    (branch,) = load_recipe(tmp_path / "moved.yaml").recipe.vision or []
    assert [(tmp_path / share.path).resolve() for share in branch.projectors] == [place / "a", place / "b"]
    assert [share.weight for share in branch.projectors] == [1, 2]
