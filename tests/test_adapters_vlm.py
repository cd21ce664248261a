"""Adapters of multimodal models, of their language models, and of LLaVA's own releases, as members."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from fuse.ask import load
from tests import recipe_members
from tests.cli import Ran, fuse_forked, fuse_here
from tests.official_adapters import MODULES, RANK, llava_folder

LINEAR = {"method": "linear", "weights": {"a": 1}}
SPOKEN = r".*language_model.*(q_proj|down_proj)"
SEEN = r".*(vision_tower.*(q_proj|fc1)|linear_1|visual.*qkv)"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters_vlm")
    for seed, kind in enumerate(("llava", "qwen2_vl", "llama")):
        recipe_members.save(kind, folder / kind, seed)
    return folder


def trained(place: Path, base: str, name: str, targets: Any, **more: Any) -> dict[str, torch.Tensor]:
    """An adapter as PEFT saves it; the weights of PEFT's own merge, by the names in memory."""
    loader = AutoModelForCausalLM if base == "llama" else AutoModelForImageTextToText
    model: Any = loader.from_pretrained(place / base)
    peft: Any = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=targets, **more))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in (p for p in peft.parameters() if p.requires_grad):
            weight.normal_(std=0.3, generator=generator)
    peft.save_pretrained(place / name)
    return peft.merge_and_unload().state_dict()


def run(place: Path, verb: str, out: str, base: str, adapter: str, **told: Any) -> Ran:
    recipe = place / f"{out}.json"
    members = {"a": {"base": base, "adapter": adapter}}
    recipe.write_text(json.dumps({"members": members, "language": LINEAR, **told}))
    return fuse_here(verb, recipe, *([place / out] if verb == "merge" else []))


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("model", ["native", "fuse"])
def test_of_every_part_of_a_multimodal_model(place: Path, kind: str, model: str) -> None:
    name = f"{kind} {model}"
    wanted = trained(place, kind, name, f"{SPOKEN}|{SEEN}")
    ran = run(place, "merge", f"{name} out", kind, name, vision=["a"], output={"model": model})
    assert (ran.code, ran.err) == (0, "")
    if model == "native":
        made: Any = AutoModelForImageTextToText.from_pretrained(place / f"{name} out")
        found = made.state_dict()
        assert found.keys() == wanted.keys()
        for key, weight in found.items():
            torch.testing.assert_close(weight, wanted[key], rtol=0, atol=5e-7)
    else:
        stored = load_file(place / f"{name} out" / "model.safetensors")
        told = (
            "branches.a.multi_modal_projector.linear_1.weight"
            if kind == "llava"
            else "branches.a.visual.blocks.0.attn.qkv.weight"
        )
        torch.testing.assert_close(stored[told], wanted[told.replace("branches.a.", "model.")], rtol=0, atol=5e-7)
        load(place / f"{name} out")


def test_with_a_projector_that_was_trained_whole(place: Path) -> None:
    wanted = trained(place, "llava", "whole", SPOKEN, modules_to_save=["multi_modal_projector"])
    ran = run(place, "merge", "whole out", "llava", "whole", vision=["a"])
    assert (ran.code, ran.err) == (0, "")
    found: Any = AutoModelForImageTextToText.from_pretrained(place / "whole out").state_dict()
    assert found.keys() == wanted.keys()
    for key, weight in found.items():
        torch.testing.assert_close(weight, wanted[key], rtol=0, atol=5e-7)
    dropped = json.loads((place / "whole out" / "fuse.json").read_text())["dropped"]
    assert [row["reason"] for row in dropped] == ["the adapter holds its own"] * 4


def test_of_the_language_model_alone_in_a_multimodal_model(place: Path) -> None:
    """What was trained on the text model changes the same tensors of a VLM, and the other way round."""
    trained(place, "llama", "text", ["q_proj", "down_proj"])
    trained(place, "llava", "around", SPOKEN)
    at = "model.layers.1.self_attn.q_proj"
    for base, adapter, vision in (("llava", "text", ["a"]), ("llama", "around", None)):
        told = {"vision": vision} if vision else {}
        ran = run(place, "merge", f"{adapter} out", base, adapter, **told)
        assert (ran.code, ran.err) == (0, "")
        factors = load_file(place / adapter / "adapter_model.safetensors")
        down, up = (next(v for k, v in factors.items() if f"layers.1.self_attn.q_proj.lora_{s}" in k) for s in "AB")
        prefix = "language_model." if vision else ""
        before, after = (load_file(place / f / "model.safetensors") for f in (base, f"{adapter} out"))
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert len(changed) == 4 and f"{prefix}{at}.weight" in changed
        wanted = before[f"{prefix}{at}.weight"].double() + 5 / 3 * (up.double() @ down.double())
        torch.testing.assert_close(after[f"{prefix}{at}.weight"].double(), wanted, rtol=0, atol=1e-7)


def test_eyes_that_the_base_does_not_have(place: Path) -> None:
    trained(place, "llava", "eyes", SEEN)
    ran = run(place, "plan", "eyes", "llama", "eyes")
    assert (ran.code, ran.err) == (3, f"fuse: {place / 'eyes'}: tensor 'base_model.model.model.multi_modal_projector.linear_1.lora_A.weight' changes model.multi_modal_projector.linear_1, which the base does not have (is it an adapter of this base?)\n")  # fmt: skip


def test_an_adapter_of_eyes_that_are_left_out(place: Path) -> None:
    """Its tensors go where the tensors that they change go."""
    trained(place, "llava", "unseen", f"{SPOKEN}|{SEEN}")
    base = {"members": {"a": {"base": "llava", "adapter": "unseen"}, "b": "llama"}}
    weights = {"method": "linear", "weights": {"a": 1, "b": 1}}
    (place / "unseen.json").write_text(json.dumps({**base, "language": weights, "vision": [], "output": {"host": "b"}}))
    ran = fuse_here("plan", place / "unseen.json")
    assert (ran.code, ran.err) == (0, "")
    assert "  a.adapter: base_model.* x10  vision is empty" in ran.out


def release(place: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    """LLaVA's LoRA release over the tiny LLaMA, as its authors store it."""
    folder = place / "release"
    text = json.loads((place / "llama" / "config.json").read_text())
    if not folder.exists():
        llava_folder(folder, text)
        wide = {"0.weight": (32, 12), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
        generator = torch.Generator().manual_seed(5)
        beside = {
            f"base_model.model.model.mm_projector.{k}": torch.randn(s, generator=generator) for k, s in wide.items()
        }
        torch.save(beside, folder / "non_lora_trainables.bin")
        recipe_members.clip_folder(place / "clip")
    told = {
        "model_type": "llava_llama", "mm_vision_tower": "clip", "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 12, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**text, **told}))
    return folder, told


def test_a_release_of_llava_is_a_member_that_sees(place: Path) -> None:
    """Import, then a member: the language model with the LoRA, the projector beside it, the tower that config names."""
    folder, _ = release(place)
    ran = fuse_forked("import", "llava_lora", folder, place / "imported")
    assert (ran.code, ran.err) == (0, "")
    ran = run(place, "merge", "seeing", "llama", "imported", vision=["a"], output={"model": "fuse"})
    assert (ran.code, ran.err) == (0, "")
    stored = load_file(place / "seeing" / "model.safetensors")
    factors, beside = (torch.load(folder / f) for f in ("adapter_model.bin", "non_lora_trainables.bin"))
    base = load_file(place / "llama" / "model.safetensors")
    for path in MODULES.values():
        at = f"model.layers.1.{path}"
        down, up = (factors[f"base_model.model.{at}.lora_{side}.weight"].double() for side in "AB")
        wanted = base[f"{at}.weight"].double() + 6 / RANK * (up @ down)
        torch.testing.assert_close(stored[f"language_model.{at}.weight"].double(), wanted, rtol=0, atol=1e-6)
    for number, linear in ((0, 1), (2, 2)):
        wanted = beside[f"base_model.model.model.mm_projector.{number}.weight"]
        assert torch.equal(stored[f"branches.a.multi_modal_projector.linear_{linear}.weight"], wanted)
    load(place / "seeing")
    sources = json.loads((place / "seeing" / "fuse.json").read_text())["members"]["a"]
    assert sorted(sources["adapter"]["sha256"]) == ["graft.safetensors", "projector.safetensors"]


def test_a_release_that_was_not_imported(place: Path) -> None:
    folder, _ = release(place)
    ran = run(place, "plan", "pickled", "llama", "release", vision=["a"])
    assert (ran.code, ran.err) == (3, f"fuse: {folder}: holds adapter_model.bin, a pickle, which only `fuse import` reads (fuse import llava_lora FOLDER OUT, and name OUT as the adapter)\n")  # fmt: skip


def test_a_projector_of_an_unknown_tower(place: Path) -> None:
    folder, _ = release(place)
    (folder / "config.json").unlink()
    assert fuse_forked("import", "llava_lora", folder, place / "blind").code == 0
    ran = run(place, "plan", "blind", "llama", "blind", vision=["a"])
    assert (ran.code, ran.err) == (3, f"fuse: {place / 'blind'}: holds a projector, and no config.json that names its vision tower (import a LLaVA release with its config.json, or name the projector in `vision`)\n")  # fmt: skip
