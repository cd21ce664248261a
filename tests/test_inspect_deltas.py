"""`fuse inspect deltas` as a user runs it: what it prints, and one sentence where it cannot."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests import official_adapters, recipe_members, tiny_vlm
from tests.cli import fuse, fuse_here
from tests.members import perturbed, save_member
from tests.test_recipes import DONORS, KINDS, ROOT

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OVER_A_BASE = sorted(name for name in KINDS if "\nbase:" in (ROOT / name).read_text())


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """near: two fine-tunes of the base; long: one five times as far; twin: near's own direction; far: another model."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    save_member(base, root / "base")
    save_member(perturbed(base, 1, 0.001), root / "near")
    save_member(perturbed(base, 2, 0.001), root / "other")
    save_member(perturbed(base, 3, 0.005), root / "long")
    save_member(perturbed(base, 1, 0.0012), root / "twin")
    save_member(perturbed(base, 1, -0.001), root / "against")
    save_member(perturbed(LlamaForCausalLM(LlamaConfig(**SIZES)), 0, 0.01), root / "far")
    return root


def recipe(root: Path, *members: str, base: str = "base: base", language: str = "") -> Path:
    file = root / f"{'_'.join(members)}.yaml"
    named = ", ".join(f"{name}: {name}" for name in members)
    language = language or "{method: task_arithmetic, weights: 0.5}"
    file.write_text(f"{base}\nmembers: {{{named}}}\nlanguage: {language}\n")
    return file


def run(file: Path, *options: object) -> str:
    ran = fuse_here("inspect", "deltas", file, *options)
    assert (ran.code, ran.err) == (0, "")
    return ran.out


def document(file: Path, *options: object) -> dict[str, Any]:
    return json.loads(run(file, "--json", *options))


def told(found: dict[str, Any], agrees: bool) -> dict[str, str]:
    return {one["topic"]: one["text"] for one in found["verdicts"] if one["agrees"] is agrees}


def test_the_table(family: Path) -> None:
    ran = fuse("inspect", "deltas", recipe(family, "near", "other"), env={"COLUMNS": "200"})
    assert (ran.code, ran.err) == (0, "")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[0] == "member moved weights changed participation strongest"
    assert "module near other cosine signs outputs inputs" in lines
    assert "layer near other cosine signs outputs inputs" in lines
    for module in ("embedding", "q", "k", "v", "o", "gate", "up", "down", "norm", "head", "all"):
        (row,) = [line for line in lines if line.startswith(f"{module} ")]
        assert re.fullmatch(r"\w+ \d+\.\d% \d+\.\d%( -?(\d\.\d{3}|-)){4}", row)
    assert lines[-7].startswith("= distance: near, other are ") and lines[-7].endswith(" base's length away from it")
    assert [line.split(":")[0] for line in lines[-7:-2]] == [
        "= distance", "= size", "= direction", "= signs", "= subspaces",
    ]  # fmt: skip
    assert re.fullmatch(
        r"weights, equal: \{near: 0\.500, other: 0\.500\} \(the merged task vector is \d\.\d% of the base's length\)",
        lines[-2],
    )
    assert lines[-1].startswith("weights, balanced: {near: 0.")


def test_many_members_and_layers_fit(family: Path, tmp_path: Path) -> None:
    """A range instead of a column each, the pairs of largest cosine, and the layers that stand out."""
    found = document(recipe(family, "near", "other", "long", "twin", "against", "far"))
    out = run(recipe(family, "near", "other", "long", "twin", "against", "far"))
    assert "module" in out and "members" in out and "and 5 pairs of smaller cosine" in out
    assert out.index("near, twin") < out.index("near, other")
    assert len(found["overall"]["cosine"]) == 6
    torch.manual_seed(0)
    deep = LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 9}))
    save_member(deep, tmp_path / "base")
    with torch.no_grad():
        moved = perturbed(deep, 1, 0.001)
        moved.model.layers[7].mlp.up_proj.weight.mul_(1.5)
    save_member(moved, tmp_path / "a")
    save_member(perturbed(deep, 2, 0.001), tmp_path / "b")
    lines = run(recipe(tmp_path, "a", "b")).splitlines()
    assert any(line.startswith("7 (moved most") for line in lines)
    assert 3 <= sum("least alike" in line for line in lines) <= 4 and sum("moved most" in line for line in lines) == 3


def test_what_is_wrong_is_said(family: Path) -> None:
    """A task vector that is too long, another base, one and the same, one against the other."""
    found = document(recipe(family, "near", "long"))
    ratio = found["overall"]["norm"][1] / found["overall"]["norm"][0]
    share = found["overall"]["norm"][0] ** 2 / sum(norm**2 for norm in found["overall"]["norm"])
    assert told(found, False) == {"size": (
        f"long's task vector is {ratio:.1f} times as long as near's, hugely different: "
        f"at equal weights near gives {100 * share:.1f}% of their energy"
    )}  # fmt: skip
    assert found["weights"]["balanced"]["weights"]["near"] > 0.8

    relative = found["overall"]["relative"][0]
    found = document(recipe(family, "near", "far"))
    distance = f"{100 * found['overall']['relative'][1]:.1f}%"
    assert told(found, False)["distance"] == (
        f"far is {distance} of the base's length away from it; models that have nothing in common are 141.4% apart: "
        "it is hardly trained from this base"
    )
    assert told(found, True)["distance"] == f"near is {100 * relative:.1f}% of the base's length away from it"

    found = document(recipe(family, "near", "twin", "other"))
    assert told(found, False)["direction"] == (
        "near and twin are nearly the same (cosine 1.000): merging them adds little to one"
    )
    assert told(found, False)["subspaces"].endswith(
        "by chance); near and twin are moving the same directions, which tsv and iso_c keep apart"
    )
    found = document(recipe(family, "near", "twin", "against"))
    assert told(found, False)["signs"] == (
        "near and against, and 1 more pair, are of conflicting signs: 0.0% of what both move agrees "
        "(50% for unrelated ones); ties keeps one sign for each element"
    )


def test_directions_in_common_by_chance_are_no_conflict(family: Path) -> None:
    """Of nearly all directions of a matrix any two members share most."""
    found = document(recipe(family, "near", "other"), "--top", 28)
    language = next(part for part in found["parts"] if part["part"] == "language")
    assert language["overlap_left"][0][1] > 0.5 and "subspaces" not in told(found, False)
    assert "near and other" not in told(found, True)["subspaces"]


def test_too_far_from_the_base(family: Path, tmp_path: Path) -> None:
    for name in ("base", "near"):
        (tmp_path / name).mkdir()
        for file in (family / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    tensors = load_file(family / "base" / "model.safetensors")
    save_file(
        {k: 1.6 * v for k, v in tensors.items()}, tmp_path / "near" / "model.safetensors", metadata={"format": "pt"}
    )
    assert told(document(recipe(tmp_path, "near")), False) == {
        "distance": "near is 60.0% of the base's length away from it: too far from the base (50.0% or more)"
    }


def test_the_number_of_directions(family: Path) -> None:
    file = recipe(family, "near", "other")
    one, many = document(file, "--top", 1), document(file, "--top", 32)
    assert (one["top"], many["top"]) == (1, 32)
    q = {found["top"]: next(cell for cell in found["cells"] if cell["module"] == "q") for found in (one, many)}
    assert q[1]["chance_left"][0][1] == pytest.approx(1 / 32) and q[32]["overlap_left"][0][1] == pytest.approx(1)
    refused = fuse_here("inspect", "deltas", file, "--top", 0)
    assert refused.code == 2 and "0 is not in the range" in refused.err


def test_a_recipe_without_a_base(family: Path) -> None:
    file = recipe(family, "near", "other", base="", language="{method: linear, weights: 0.5}")
    ran = fuse_here("inspect", "deltas", file)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "fuse: near_other.yaml:2:1: base: task vectors are differences to a base, and the recipe names none "
        "(add `base:`, the language model that the members were trained from)\n"
    )


def test_no_recipe(tmp_path: Path) -> None:
    ran = fuse_here("inspect", "deltas", tmp_path / "none.yaml")
    assert (ran.code, ran.err) == (2, f"fuse: {tmp_path / 'none.yaml'}: there is no such file\n")


@pytest.mark.parametrize(
    ("tensor", "element"), [("model.layers.1.mlp.up_proj.weight", 700), ("model.embed_tokens.weight", 40)]
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_number_that_is_not_finite(family: Path, tmp_path: Path, tensor: str, element: int, value: float) -> None:
    for name in ("base", "near", "other"):
        (tmp_path / name).symlink_to(family / name) if name != "near" else (tmp_path / name).mkdir()
    for file in (family / "near").iterdir():
        (tmp_path / "near" / file.name).write_bytes(file.read_bytes())
    tensors = load_file(family / "near" / "model.safetensors")
    tensors[tensor].view(-1)[element] = value
    save_file(tensors, tmp_path / "near" / "model.safetensors", metadata={"format": "pt"})
    ran = fuse_here("inspect", "deltas", recipe(tmp_path, "other", "near"))
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == (
        f"fuse: {tmp_path / 'near' / 'model.safetensors'}: tensor {tensor!r} of near holds {value} at element {element} "
        "(the checkpoint is damaged; fuse writes nothing from it)\n"
    )


@pytest.mark.parametrize("name", OVER_A_BASE)
def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every recipe that names a base: VLMs, originals, adapters, three members."""
    text = (ROOT / name).read_text()
    recipe_members.furnish([text], KINDS[name], tmp_path, monkeypatch, DONORS.get(name))
    (tmp_path / "recipe.yaml").write_text(recipe_members.stand_in(text))
    found = document(tmp_path / "recipe.yaml")
    moved = json.loads((tmp_path / "recipe.yaml").read_text())["language"].get("weights")
    assert set(found["members"]) == set(moved if isinstance(moved, dict) else KINDS[name]) - {"base"}
    assert {row["part"] for row in found["parts"]} == {"language"}
    assert not any(row["module"] == "other" for row in found["modules"])
    layers = {row["layer"]: row for row in found["layers"]}
    assert list(layers) == [0, 1] and all(value > 0 for value in layers[1]["norm"])
    run(tmp_path / "recipe.yaml")


def test_encoders_that_are_merged_too(tmp_path: Path) -> None:
    """Over a VLM as the base, with verdicts of their own."""
    model = tiny_vlm.build("llava")
    for seed, name in enumerate(("base", "a", "b")):
        recipe_members.tiny_processors.save(perturbed(model, seed, 0.01 * (1 + 4 * (name == "b"))), tmp_path / name)
    merge = "{method: task_arithmetic, weights: 0.5}"
    (tmp_path / "r.yaml").write_text(
        f"base: base\nmembers: {{a: a, b: b}}\nlanguage: {merge}\nvision: [{{from: a, merge: {merge}}}]\n"
    )
    found = document(tmp_path / "r.yaml")
    assert {row["part"] for row in found["parts"]} == {"encoder", "projector", "language"}
    projector = next(row for row in found["parts"] if row["part"] == "projector")
    own = {k: v for k, v in load_file(tmp_path / "a" / "model.safetensors").items() if "projector" in k and v.ndim == 2}
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert projector["norm"][0] == pytest.approx(
        sum(float((v - base[k]).double().square().sum()) for k, v in own.items()) ** 0.5
    )
    sizes = [one["text"].split(":")[0] for one in found["verdicts"] if one["topic"] == "size"]
    assert sorted(sizes)[1:] == ["encoder", "projector"] and sorted(sizes)[0].startswith("b's task vector is ")
    assert {drawn["part"] for drawn in found["maps"]} == {"language", "encoder"}
    assert "encoder embedding" in run(tmp_path / "r.yaml")


def test_grafts_that_are_folded_do_not_count(family: Path, tmp_path: Path) -> None:
    """The task vectors are the members', whatever becomes of the host afterwards."""
    for name in ("base", "near", "other"):
        (tmp_path / name).symlink_to(family / name)
    config = json.loads((family / "near" / "config.json").read_text())
    official_adapters.peft_folder(tmp_path / "style", config)
    plain = recipe(tmp_path, "near", "other")
    folded = tmp_path / "folded.yaml"
    folded.write_text(f"{plain.read_text()}grafts: [{{from: style, fold: true}}]\n")
    assert document(folded)["overall"] == document(plain)["overall"]


def test_progress_and_help(family: Path) -> None:
    shown = fuse("inspect", "deltas", "--help")
    assert shown.code == 0 and "Measure how the task vectors" in shown.out
    quiet = fuse_here("inspect", "deltas", recipe(family, "near"), "--quiet", "--json")
    assert (quiet.code, quiet.err) == (0, "") and json.loads(quiet.out)["members"] == ["near"]
