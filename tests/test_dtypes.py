"""A dtype for each part of the output: in the files, in the config, in the plan, and when the folder is loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from fuse.ask import load
from fuse.dtypes import part_dtypes
from fuse.recipe import PartDtypes
from tests import official_adapters, recipe_members
from tests.cli import fuse_here
from tests.original_branches import picture

WIDE = "output: {dtype: {language: bfloat16, vision: float32}}"


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("members")
    for seed, (name, kind) in enumerate({"llava": "llava", "next": "llava_next"}.items()):
        recipe_members.save(kind, root / name, seed)
    file = root / "next" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"vision_config": config["vision_config"] | {"dtype": "float16"}}))
    return root


def merge(root: Path, out: Path, more: str) -> dict[str, set[torch.dtype]]:
    """The dtypes of each beginning of tensor names."""
    recipe = root / f"{out.name}.yaml"
    recipe.write_text(f"members: {{llava: llava, next: next}}\nlanguage: {{method: linear, weights: 1}}\n{more}\n")
    ran = fuse_here("merge", recipe, out)
    assert (ran.code, ran.err) == (0, ""), ran
    found: dict[str, set[torch.dtype]] = {}
    for name, tensor in load_file(out / "model.safetensors").items():
        kind = (
            "projector" if "projector" in name or "newline" in name else "encoder" if "vision" in name else "language"
        )
        found.setdefault("graft" if name.startswith("grafts.") else kind, set()).add(tensor.dtype)
    return found


def test_words() -> None:
    every = ("language", "encoder", "projector", "extra", "graft")
    assert part_dtypes(None) == {} and part_dtypes("float16") == dict.fromkeys(every, "float16")
    table = PartDtypes(language=None, vision="float32", projector="bfloat16", grafts="float16")
    assert part_dtypes(table) == {
        "encoder": "float32", "projector": "bfloat16", "extra": "bfloat16", "graft": "float16",
    }  # fmt: skip


def test_native(members: Path, tmp_path: Path) -> None:
    found = merge(members, tmp_path / "out", f"vision: [next]\n{WIDE}")
    assert found == {"language": {torch.bfloat16}, "encoder": {torch.float32}, "projector": {torch.float32}}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["vision_config"]["dtype"]) == ("bfloat16", "float32")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}  # transformers loads a class in one dtype
    seen(tmp_path)


def test_projector_apart(members: Path, tmp_path: Path) -> None:
    dtype = "output: {dtype: {vision: float32, projector: float16}}"
    found = merge(members, tmp_path / "out", f"vision: [next]\n{dtype}")
    assert found == {"language": {torch.float32}, "encoder": {torch.float32}, "projector": {torch.float16}}


def test_a_fused_folder_keeps_its_eyes_wide(members: Path, tmp_path: Path) -> None:
    found = merge(members, tmp_path / "out", f"vision: [llava, next]\n{WIDE}")
    assert found == {"language": {torch.bfloat16}, "encoder": {torch.float32}, "projector": {torch.float32}}
    model = load(tmp_path / "out").model
    assert {p.dtype for p in model.branches.parameters()} == {torch.float32}
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
    stored = load_file(tmp_path / "out" / "model.safetensors")
    held = dict(model.named_parameters())
    assert all(torch.equal(held[k], v) for k, v in stored.items() if k in held)
    seen(tmp_path)
    narrow = merge(members, tmp_path / "narrow", "vision: [llava, next]\noutput: {dtype: bfloat16}")
    assert set.union(*narrow.values()) == {torch.bfloat16}
    assert {p.dtype for p in load(tmp_path / "narrow").model.parameters()} == {torch.bfloat16}


def test_wide_eyes_that_read_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SliME's sampler and `similarity` read embeddings of the language model, which is narrower than they are."""
    text = (
        "members: {mgm: mgm, slime: slime, llava: llava}\nlanguage: {method: linear, weights: 1}\n"
        f"vision: [mgm, slime, {{from: llava, max_tokens: 3, prune: similarity, norm: match}}]\n{WIDE}\n"
    )
    recipe_members.furnish([text], {"mgm": "mgm", "slime": "slime", "llava": "llava"}, tmp_path, monkeypatch)
    (tmp_path / "r.yaml").write_text(recipe_members.stand_in(text))
    ran = fuse_here("merge", tmp_path / "r.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    model = load(tmp_path / "out").model
    assert {p.dtype for p in model.branches.parameters()} == {torch.float32}
    seen(tmp_path)


def test_grafts(members: Path, tmp_path: Path) -> None:
    config = json.loads((members / "llava" / "config.json").read_text())["text_config"]
    official_adapters.peft_folder(members / "style", config)
    more = "vision: [llava]\ngrafts: [{from: style}]\noutput: {dtype: {language: bfloat16, grafts: float16}}"
    found = merge(members, tmp_path / "out", more)
    assert found["graft"] == {torch.float16} and found["language"] == {torch.bfloat16}
    assert found["encoder"] == {torch.float32}
    seen(tmp_path)


def seen(tmp_path: Path) -> None:
    """The folder answers about an image."""
    picture(60, 40).save(tmp_path / "photo.png")
    ran = fuse_here("ask", tmp_path / "out", "w5 w6", "--image", tmp_path / "photo.png", "--max-tokens", 3)
    assert (ran.code, ran.err) == (0, ""), ran


def test_the_plan_shows_dtypes_that_differ(members: Path) -> None:
    recipe = members / "plan.yaml"
    text = "members: {next: next}\nlanguage: {method: linear, weights: 1}\nvision: [next]\n"
    recipe.write_text(text + WIDE)
    out = fuse_here("plan", recipe).out
    assert out.count("  bfloat16, linear of next ") == 1
    assert out.count("  float32, copy from next: ") == 3  # encoder, projector, and the vector that ends rows
    recipe.write_text(text)
    assert "float32" not in fuse_here("plan", recipe).out


REFUSED = {
    "bf16": "r.yaml:4:10: output.dtype: should be 'bfloat16', 'float16' or 'float32', not 'bf16'",
    "{language: bf16}": "r.yaml:4:18: output.dtype.language: should be 'bfloat16', 'float16' or 'float32', not 'bf16'",
    "{visoin: float32}": "r.yaml:4:18: output.dtype.visoin: unknown key (did you mean: vision)",
    "[float32]": "r.yaml:4:10: output.dtype: should be 'bfloat16', 'float16' or 'float32', not ['float32']",
    "{}": "r.yaml:4:10: output.dtype: names no part (such as language: bfloat16)",
    "{grafts: float32}": "r.yaml:4:18: output.dtype.grafts: the output has no such tensors (leave it out)",
}


@pytest.mark.parametrize("dtype", REFUSED)
def test_refused(members: Path, dtype: str) -> None:
    text = "members: {next: next}\nlanguage: {method: linear, weights: 1}\nvision: [next]\n"
    (members / "r.yaml").write_text(f"{text}output: {{dtype: {dtype}}}\n")
    ran = fuse_here("plan", members / "r.yaml")
    assert (ran.code, ran.err) == (2, f"fuse: {REFUSED[dtype]}\n")
