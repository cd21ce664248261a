"""LoRA from a PEFT or LLaVA folder to an answer, through the command line, beside the host and inside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.ask import load
from tests import recipe_members
from tests.cli import Ran, fuse_forked, fuse_here
from tests.original_branches import difference
from tests.test_lora import trained

MODULES = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA and a PEFT folder of it, with PEFT's own logits beside."""
    folder = tmp_path_factory.mktemp("lora")
    recipe_members.save("llama", folder / "llm", 0)
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder / "llm")
    peft, _, _ = trained(model, folder / "peft", r=3, lora_alpha=5, target_modules=MODULES)
    with torch.no_grad():
        torch.save(peft(torch.tensor([[5, 9, 33, 21]])).logits, folder / "logits.pt")
    return folder


def merge(place: Path, out: Path, *grafts: dict[str, Any], verb: str = "merge") -> Ran:
    recipe = out.with_suffix(".json")
    language = {"method": "linear", "weights": {"llm": 1}}
    told = {"members": {"llm": {"path": str(place / "llm")}}, "language": language, "grafts": list(grafts)}
    recipe.write_text(json.dumps(told))
    return fuse_here("plan", recipe) if verb == "plan" else fuse_here("merge", recipe, out)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(folder).model(torch.tensor([[5, 9, 33, 21]])).logits


def test_a_peft_folder_is_a_donor(place: Path, tmp_path: Path) -> None:
    ran = merge(place, tmp_path / "out", {"from": str(place / "peft"), "name": "skill"})
    assert (ran.code, ran.err) == (0, ""), ran
    wanted = torch.load(place / "logits.pt")
    assert difference(logits(tmp_path / "out"), wanted) < 1e-5
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert {"grafts.skill.language.0.q.down", "grafts.skill.language.1.down.up"} <= names
    asked = fuse_here("ask", tmp_path / "out", "w5 w6", "--max-tokens", 3, "--json")
    assert (asked.code, asked.err) == (0, "") and json.loads(asked.out)["question"] == "w5 w6"


def test_folded_it_is_a_llama_that_computes_what_peft_computes(place: Path, tmp_path: Path) -> None:
    ran = merge(place, tmp_path / "out", {"from": str(place / "peft"), "fold": True})
    assert (ran.code, ran.err) == (0, ""), ran
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(place / "llm" / "model.safetensors").keys()
    )
    assert difference(logits(tmp_path / "out"), torch.load(place / "logits.pt")) < 1e-5


@pytest.mark.parametrize("fold", [False, True])
def test_a_scale_is_a_multiple_of_alpha(place: Path, tmp_path: Path, fold: bool) -> None:
    """Minus twice the scale is PEFT's own adapter with an alpha of minus twice its own."""
    told = json.loads((place / "peft" / "adapter_config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(told | {"lora_alpha": -2 * told["lora_alpha"]}))
    save_file(load_file(place / "peft" / "adapter_model.safetensors"), tmp_path / "other" / "adapter_model.safetensors")
    assert merge(place, tmp_path / "a", {"from": str(tmp_path / "other")}).code == 0
    assert merge(place, tmp_path / "b", {"from": str(place / "peft"), "scale": -2, "fold": fold}).code == 0
    assert difference(logits(tmp_path / "a"), logits(tmp_path / "b")) < 1e-5
    assert difference(logits(tmp_path / "a"), torch.load(place / "logits.pt")) > 1e-3


def test_scale_0_is_the_host_bit_by_bit(place: Path, tmp_path: Path) -> None:
    assert merge(place, tmp_path / "out", {"from": str(place / "peft"), "scale": 0}).code == 0
    assert torch.equal(logits(tmp_path / "out"), logits(place / "llm"))


def test_imported_folders_of_llava_and_of_peft(place: Path, tmp_path: Path) -> None:
    llava = tmp_path / "llava"
    llava.mkdir()
    (llava / "adapter_config.json").write_text((place / "peft" / "adapter_config.json").read_text())
    torch.save(load_file(place / "peft" / "adapter_model.safetensors"), llava / "adapter_model.bin")
    prefix = "base_model.model.model.mm_projector"
    torch.save({f"{prefix}.weight": torch.ones(32, 8)}, llava / "non_lora_trainables.bin")
    ran = fuse_forked("import", "llava_lora", llava, tmp_path / "donor", "--host", place / "llm")
    assert ran.code == 0, ran.err
    assert load_file(tmp_path / "donor" / "projector.safetensors")["weight"].shape == (32, 8)
    assert merge(place, tmp_path / "out", {"from": str(tmp_path / "donor")}).code == 0
    assert difference(logits(tmp_path / "out"), torch.load(place / "logits.pt")) < 1e-5
    refused = merge(place, tmp_path / "no", {"from": str(llava)})
    assert (refused.code, refused.err) == (
        3,
        f"fuse: {llava}: holds no adapter_model.safetensors (`fuse import llava_lora FOLDER OUT` reads an adapter_model.bin)\n",
    )


def test_refusals_leave_no_output(place: Path, tmp_path: Path) -> None:
    told = json.loads((place / "peft" / "adapter_config.json").read_text())
    tensors = load_file(place / "peft" / "adapter_model.safetensors")
    for name, changes, shape, sentence in (
        ("dora", {"use_dora": True}, (3, 32), "adapter_config.json: use_dora is True, which is more than LoRA (DoRA rescales whole rows of the base's weights; merge it into its base with PEFT first)"),
        ("wide", {}, (3, 40), "lora cannot be grafted into llm: makes 32 numbers of 32 in language.0.q, and the donor 32 of 40"),
    ):  # fmt: skip
        donor = tmp_path / name
        donor.mkdir()
        (donor / "adapter_config.json").write_text(json.dumps({**told, **changes}))
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        save_file({**tensors, key: torch.ones(shape)}, donor / "adapter_model.safetensors")
        ran = merge(place, tmp_path / "out", {"from": str(donor)})
        assert (ran.code, ran.err) == (3, f"fuse: {donor}: {sentence}\n")
        assert not (tmp_path / "out").exists()
