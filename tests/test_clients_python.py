"""A fused folder in one's own Python: transformers' pipeline, PEFT's LoRA, accelerate's offloading."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, infer_auto_device_map
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, pipeline

from fuse.errors import CheckpointError
from tests.cli import fuse_here
from tests.client_folders import KINDS_OF_ALL, Asked, asked, merged, zoo
from tests.test_fused_model import fused, picture

ASK = "what color is {} ?"
GRAFTED = ["lion_with_lmeye.yaml", "lavin.yaml", "llama_adapter_v2.yaml", "mks2_mixture.yaml"]
LANGUAGE = r"language_model\..*\.(q_proj|v_proj|down_proj|q|v|wo)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Recipe -> its folder and what it says, made once."""
    made: dict[str, Asked] = {}

    def of_kind(recipe: str) -> Asked:
        if recipe not in made:
            made[recipe] = asked(merged(recipe, tmp_path_factory.mktemp("kind")))
        return made[recipe]

    return of_kind


def turn(folder: Path, question: str, answer: str = "") -> list[dict[str, Any]]:
    scene = {"type": "image", "path": str(folder.parent / "scene.png")}
    said = [{"role": "user", "content": [scene, {"type": "text", "text": question}]}]
    return [*said, *([{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else [])]


def test_the_pipeline_says_what_fuse_ask_says(folder: Path) -> None:
    """Alone, in a batch of unequal lengths, with generate_kwargs, and going on from the first word of an answer."""
    ask = pipeline("image-text-to-text", str(folder))
    questions = [ASK.format("square"), "how many things ?", "what shape is red ?"]
    told = [fuse_here("ask", folder, q, "--image", folder.parent / "scene.png").out.strip() for q in questions]
    assert len(set(told)) == 3 and all(told), told
    how: dict[str, Any] = {"max_new_tokens": 8, "return_full_text": False}
    together = ask(text=[turn(folder, q) for q in questions], batch_size=2, **how)
    assert [one[0]["generated_text"].strip() for one in together] == told
    given = {"max_new_tokens": 8, "num_beams": 1, "do_sample": False}
    alone = ask(text=turn(folder, questions[0]), generate_kwargs=given, return_full_text=False)
    assert alone[0]["generated_text"].strip() == told[0]
    place, color = told[0].split()
    goes_on = ask(text=turn(folder, questions[0], place), **how)
    assert goes_on[0]["generated_text"].split() == [color]


def test_both_auto_classes_that_read_images(folder: Path) -> None:
    one, other = (auto.from_pretrained(folder) for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM))
    assert type(one) is type(other)


@pytest.mark.parametrize("recipe", KINDS_OF_ALL)
def test_every_tensor_elsewhere_between_calls(of_kind: Any, recipe: str) -> None:
    """accelerate's offload of the whole model; after a pass all is away again."""
    wanted = of_kind(recipe)
    model = cpu_offload(wanted.load(), execution_device=torch.device("cpu"))
    assert wanted.same(model)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


@pytest.mark.parametrize("model_type", ["llava_next", "llava_onevision", "idefics3", "internvl", "gemma3", "qwen2_vl"])
@torch.no_grad()
def test_every_tensor_of_a_native_branch_elsewhere(model_type: str) -> None:
    model, processor = fused(f"a={model_type}:1", f"b={model_type}:2")
    batch = processor(images=[picture((60, 40))], text=[f"{processor.image_token} w5 w6"])
    away = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert torch.equal(away(**batch).logits, model(**batch).logits)
    assert {weight.device.type for weight in away.parameters()} == {"meta"}


def test_the_embedding_on_the_disk_while_a_branch_is_in_memory(of_kind: Any, tmp_path: Path) -> None:
    """A branch is handed the embedding, which must stay where accelerate keeps it."""
    wanted = of_kind("vlm_with_open_clip_encoder.yaml")
    split = {"language_model": "disk", "branches": "cpu", "grafts": "cpu"}
    assert wanted.same(wanted.load(device_map=split, offload_folder=tmp_path))


def test_a_map_that_accelerate_makes_itself(folder: Path, tmp_path: Path) -> None:
    """Half of the bytes in memory, the rest on the disk; blocks stay whole."""
    whole, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    batch = processor.apply_chat_template(turn(folder, ASK.format("square")), tokenize=True, add_generation_prompt=True)
    most = {"cpu": whole.get_memory_footprint() // 2, "disk": 1 << 40}
    split = infer_auto_device_map(whole, max_memory=most, no_split_module_classes=list(whole._no_split_modules))
    assert {*split.values()} == {"cpu", "disk"} and not any(".self_attn" in name or ".mlp" in name for name in split)
    spread = AutoModelForImageTextToText.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": most["cpu"]}, offload_folder=tmp_path
    )
    assert {*spread.hf_device_map.values()} == {"cpu", "disk"}
    with torch.no_grad():
        assert torch.equal(spread(**batch).logits, whole(**batch).logits)


def test_a_pass_that_fails_leaves_nothing_behind(of_kind: Any) -> None:
    wanted = of_kind("visionfuse_mgm_slime.yaml")
    model = cpu_offload(wanted.load(), execution_device=torch.device("cpu"))
    broken = {k: [t[..., :-1] for t in v] if "pixel" in k else v for k, v in wanted.batch.items()}
    with pytest.raises(CheckpointError, match="cannot encode its image"):
        model(**broken)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert wanted.same(model)


@pytest.mark.parametrize("recipe", GRAFTED[1:])
def test_a_copy_has_grafts_of_its_own(of_kind: Any, recipe: str) -> None:
    """Also of a model that has run, whose grafts are attached."""
    wanted = of_kind(recipe)
    model = wanted.load()
    assert wanted.same(model)
    other = copy.deepcopy(model)
    assert wanted.same(other)
    for graft in other.grafts.values():
        for weight in graft.parameters():
            weight.data.mul_(3)
    assert wanted.same(model) and not wanted.same(other)


def test_a_lora_learns_and_the_rest_stays(folder: Path, tmp_path: Path) -> None:
    """Trained to a wrong answer; heard, silenced, saved, loaded over the folder, and folded in."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    question = ASK.format("square")
    prompt = processor.apply_chat_template(turn(folder, question), tokenize=True, add_generation_prompt=True)
    start = prompt["input_ids"].shape[1]

    def say(speaker: Any) -> str:
        return processor.decode(
            speaker.generate(**prompt, max_new_tokens=4)[0, start:], skip_special_tokens=True
        ).strip()

    told = say(model)
    wrong = f"{told.split()[0]} {'green' if told.endswith('red') else 'red'}"
    lesson = processor.apply_chat_template(turn(folder, question, wrong), tokenize=True)
    labels = lesson["input_ids"].clone()
    labels[:, :start] = -100
    torch.manual_seed(0)
    peft: Any = get_peft_model(model, LoraConfig(r=4, target_modules=LANGUAGE))
    learns = [weight for weight in peft.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        peft(**lesson, labels=labels).loss.backward()
        optimizer.step()
    plain = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): t for name, t in peft.state_dict().items()
    }
    assert all(torch.equal(plain[name], tensor) for name, tensor in before.items())
    peft.eval()
    assert say(peft) == wrong
    with peft.disable_adapter():
        assert say(peft) == told
    peft.save_pretrained(tmp_path / "lora")
    over = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), tmp_path / "lora"
    )
    with torch.no_grad():
        wanted = peft(**prompt).logits
        assert torch.equal(over(**prompt).logits, wanted)
        folded: Any = over.merge_and_unload()
        assert (folded(**prompt).logits - wanted).abs().max() < 1e-4
    folded.save_pretrained(tmp_path / "folded")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "folded")
    with torch.no_grad():
        assert torch.equal(again(**prompt).logits, folded(**prompt).logits)
    assert say(again) == wrong


@pytest.mark.parametrize("recipe", GRAFTED)
def test_a_lora_around_projections_that_grafts_change(of_kind: Any, recipe: str) -> None:
    """Whether grafts were attached before PEFT came, or after, and when it has gone again."""
    wanted = of_kind(recipe)
    found = []
    for ran in (False, True):
        model = wanted.load()
        if ran:
            wanted.of(model)
        torch.manual_seed(0)
        peft: Any = get_peft_model(model, LoraConfig(r=2, target_modules=LANGUAGE, init_lora_weights=False)).eval()
        found.append(wanted.of(peft))
        with peft.disable_adapter():
            assert torch.equal(wanted.of(peft), wanted.logits)
    assert torch.equal(*found) and (found[0] - wanted.logits).abs().max() > 1e-3
    assert (wanted.of(peft.merge_and_unload()) - found[0]).abs().max() < 1e-5
