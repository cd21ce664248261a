"""LoRA that was trained in a LLaVA: LLaVA's own releases, and PEFT over transformers' class, from folder to logits."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel, LlamaForCausalLM, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from fuse.ask import load
from tests import recipe_members
from tests.cli import Ran, fuse_forked, fuse_here
from tests.official_adapters import MODULES, RANK, llava_folder
from tests.original_branches import difference, picture

LANGUAGE = {"method": "linear", "weights": {"llm": 1}}
PHOTO = picture(60, 40)


def merge(folder: Path, out: str, verb: str = "merge", **told: Any) -> Ran:
    recipe = {"members": {"llm": {"path": "llm"}}, "language": LANGUAGE, **told}
    (folder / f"{out}.json").write_text(json.dumps(recipe))
    return fuse_here(verb, folder / f"{out}.json", *([folder / out] if verb == "merge" else []))


def changed(llm: Any, factors: dict[str, torch.Tensor], scaling: float) -> None:
    """LoRA added to a LLaMA's weights by hand."""
    for layer, block in enumerate(llm.model.layers):
        for path in MODULES.values():
            at = f"base_model.model.model.layers.{layer}.{path}"
            down, up = factors[f"{at}.lora_A.weight"], factors[f"{at}.lora_B.weight"]
            block.get_submodule(path).weight += scaling * up @ down


@torch.no_grad()
def test_a_release_of_llava_becomes_the_llava_that_it_was_trained_for(tmp_path: Path) -> None:
    """Vicuna, CLIP, and a release of adapter and projector: what transformers' LLaVA computes with all of them."""
    recipe_members.save("llama", tmp_path / "llm", 0)
    recipe_members.save_encoder(tmp_path / "clip")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    llava_folder(tmp_path / "release", config)
    ran = fuse_forked("import", "llava_lora", tmp_path / "release", tmp_path / "donor", "--host", tmp_path / "llm")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1:3] == ["  graft: lora, 12 tensors, 4.6 kB", "  projector: linear, 4 tensors, 3.7 kB"]
    went = {line.split("  -> ")[0].strip(): line.split("  -> ")[1] for line in ran.out.splitlines()[3:]}
    at = "base_model.model.model"
    assert went == {
        f"{at}.layers.*.self_attn.q_proj.lora_A.weight": "graft language.*.q.down (2)",
        f"{at}.layers.*.self_attn.q_proj.lora_B.weight": "graft language.*.q.up (2)",
        f"{at}.layers.*.self_attn.v_proj.lora_A.weight": "graft language.*.v.down (2)",
        f"{at}.layers.*.self_attn.v_proj.lora_B.weight": "graft language.*.v.up (2)",
        f"{at}.layers.*.mlp.down_proj.lora_A.weight": "graft language.*.down.down (2)",
        f"{at}.layers.*.mlp.down_proj.lora_B.weight": "graft language.*.down.up (2)",
        f"{at}.mm_projector.*.weight": "projector *.weight (2)",
        f"{at}.mm_projector.*.bias": "projector *.bias (2)",
    }
    eyes = [{"name": "clip", "encoder": "clip", "projector": "donor", "layer": -2}]
    ran = merge(tmp_path, "out", vision=eyes, grafts=[{"from": "donor"}])
    assert (ran.code, ran.err) == (0, ""), ran
    made = load(tmp_path / "out")
    given = made.processor(text=[f"{made.processor.image_token} w5 w6 w7"], images=[[PHOTO]])
    found = made.model(**given).logits[0]

    llm: Any = LlamaForCausalLM.from_pretrained(tmp_path / "llm")
    factors = torch.load(tmp_path / "release" / "adapter_model.bin")
    changed(llm, factors, 6 / RANK)
    tower: Any = CLIPVisionModel.from_pretrained(tmp_path / "clip")
    told = LlavaConfig(
        vision_config=tower.config, text_config=llm.config, image_token_index=95, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    whole: Any = Llava(told).eval()
    whole.model.vision_tower.load_state_dict(tower.state_dict())
    whole.model.language_model.load_state_dict(llm.model.state_dict())
    whole.lm_head.load_state_dict(llm.lm_head.state_dict())
    beside = torch.load(tmp_path / "release" / "non_lora_trainables.bin")
    linears = whole.model.multi_modal_projector.linear_1, whole.model.multi_modal_projector.linear_2
    prefix = "base_model.model.model.mm_projector"
    for number, linear in zip((0, 2), linears, strict=True):
        linear.weight = torch.nn.Parameter(beside[f"{prefix}.{number}.weight"])
        linear.bias = torch.nn.Parameter(beside[f"{prefix}.{number}.bias"])
    is_image = given["input_ids"] == made.model.config.branches[0]["token_id"]
    assert int(is_image.sum()) == 16
    pixels = given["branches.clip.pixel_values"][0][None]
    ids = given["input_ids"].masked_fill(is_image, 95)
    wanted = whole(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits[0]
    assert difference(found[:, : wanted.shape[1]], wanted) < 1e-5
    for layer in whole.model.language_model.layers:  # and not without the LoRA
        layer.self_attn.q_proj.weight.zero_()
    assert difference(whole(input_ids=ids, pixel_values=pixels).logits[0], wanted) > 1e-3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    recipe_members.save("llava", folder / "llm", 0)
    return folder


def trained(place: Path, name: str, targets: Any) -> Any:
    """PEFT over transformers' LLaVA, saved as it saves itself."""
    model: Any = AutoModelForImageTextToText.from_pretrained(place / "llm")
    peft: Any = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=targets)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (p for n, p in peft.named_parameters() if ".lora_" in n):
            parameter.normal_(std=0.3, generator=generator)
    peft.save_pretrained(place / name)
    return peft


@torch.no_grad()
@pytest.mark.parametrize("fold", [False, True])
def test_peft_over_the_language_model_of_a_llava(place: Path, fold: bool) -> None:
    """With the member's own tower: what PEFT computes with the same image, beside the weights and folded into them."""
    peft = trained(place, "skill", r".*language_model.*\.(q_proj|v_proj|down_proj)")
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in load_file(
        place / "skill" / "adapter_model.safetensors"
    )
    out = f"fold_{fold}"
    ran = merge(place, out, vision=["llm"], grafts=[{"from": "skill", "fold": fold}])
    assert (ran.code, ran.err) == (0, ""), ran
    native = AutoProcessor.from_pretrained(place / "llm")(text="<image> w5 w6 w7", images=PHOTO, return_tensors="pt")
    wanted = peft(**native).logits[0, -3:]
    made = load(place / out)
    given = native
    if fold:
        assert made.model.config.model_type == "llava"
    else:
        assert [graft["name"] for graft in made.model.config.grafts] == ["lora"]
        given = made.processor(text=[f"{made.processor.image_token} w5 w6 w7"], images=[[PHOTO]])
    assert difference(made.model(**given).logits[0, -3:, : wanted.shape[1]], wanted) < 1e-5
    plain: Any = AutoModelForImageTextToText.from_pretrained(place / "llm")
    assert difference(plain(**native).logits[0, -3:], wanted) > 1e-3


ELSEWHERE = "which is no projection of a language model's blocks"


@pytest.mark.parametrize(
    ("name", "targets", "sentence"),
    [
        ("tower", r".*vision_tower.*layers\.0\..*q_proj", f"changes model.vision_tower.* {ELSEWHERE}"),
        ("projector", ["linear_1"], f"changes model.multi_modal_projector.linear_1, {ELSEWHERE}"),
        ("head", ["lm_head"], "is no LoRA factor"),  # PEFT stores the whole head beside it
    ],
)
def test_lora_elsewhere_in_a_llava_is_refused(place: Path, name: str, targets: Any, sentence: str) -> None:
    """Its tower, its projector and its head are no projections of the language model's blocks."""
    trained(place, name, targets)
    key = min(load_file(place / name / "adapter_model.safetensors"))
    start, end = f"fuse: {place / name}: tensor {key!r} ", " (merge it into its base with PEFT first)\n"
    for verb in ("plan", "merge"):
        ran = merge(place, f"out_{name}", verb, vision=["llm"], grafts=[{"from": name}])
        assert ran.code == 3 and ran.err.startswith(start) and ran.err.endswith(end), ran.err
        assert re.fullmatch(sentence, ran.err.removeprefix(start).removesuffix(end))
    assert not (place / f"out_{name}").exists()


@pytest.mark.parametrize(
    ("file", "key", "sentence"),
    [
        ("non_lora_trainables.bin", "base_model.model.model.vision_tower.vision_tower.vision_model.post_layernorm.weight", "is a whole weight that was trained beside the LoRA (a member that holds whole weights can be merged instead)"),
        ("non_lora_trainables.bin", "base_model.model.model.embed_tokens.weight", "is a whole weight that was trained beside the LoRA (a member that holds whole weights can be merged instead)"),
        ("adapter_model.bin", "base_model.model.model.mm_projector.0.lora_A.weight", "changes model.mm_projector.0, which is no projection of a language model's blocks (merge it into its base with PEFT first)"),
    ],
)  # fmt: skip
def test_releases_that_hold_more(file: str, key: str, sentence: str, tmp_path: Path) -> None:
    recipe_members.save("llama", tmp_path / "llm", 0)
    llava_folder(tmp_path / "release", json.loads((tmp_path / "llm" / "config.json").read_text()))
    held = torch.load(tmp_path / "release" / file)
    torch.save({key: torch.ones(3, 12), **held}, tmp_path / "release" / file)
    ran = fuse_forked("import", "llava_lora", tmp_path / "release", tmp_path / "donor")
    assert (ran.code, ran.err) == (3, f"fuse: {tmp_path / 'release'}: tensor {key!r} {sentence}\n")
    assert not (tmp_path / "donor").exists()
