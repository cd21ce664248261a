"""LMEye from a checkpoint of its authors to answers: import, merge, ask; generation with and without a cache."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, CLIPModel

import fuse  # noqa: F401 - makes the Auto classes know the folder
from tests import recipe_members, tiny_lmeye
from tests.cli import Ran, fuse_forked, fuse_here
from tests.original_branches import picture

D = recipe_members.HIDDEN
NET = tiny_lmeye.network(D)
RECIPE = """members: {llm: llm}
language: {method: linear, weights: {llm: 1}}
vision: [{name: clip, encoder: clip, projector: donor}]
grafts: [{from: donor, name: eyes%s}]
output: {dtype: float32}
"""
HOW: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA, a tiny CLIP, and what `fuse import` makes of a tiny network."""
    folder = tmp_path_factory.mktemp("parts")
    recipe_members.save("llama", folder / "llm", 0)
    tiny_lmeye.save_clip(folder / "clip")
    file = tiny_lmeye.save_pickle(NET, folder / "checkpoint_with_epoch4.pth")
    ran = fuse_here(
        "import", "lmeye", file, folder / "donor", "--set", f"clip={folder / 'clip'}", "--host", folder / "llm"
    )
    assert (ran.code, ran.err) == (0, ""), ran
    return folder


def merge(parts: Path, out: Path, more: str = "", recipe: str = RECIPE) -> Ran:
    file = parts / f"{out.parent.name}.yaml"
    file.write_text(recipe % more if "%s" in recipe else recipe)
    return fuse_here("merge", file, out)


def opened(folder: Path, **how: Any) -> tuple[Any, Any]:
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder, **{"dtype": torch.float32, **how}, output_loading_info=True
    )
    assert {k: list(v) for k, v in report.items() if v} == {}
    return model.eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def made(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    out = tmp_path_factory.mktemp("made") / "out"
    ran = merge(parts, out)
    assert (ran.code, ran.err) == (0, ""), ran
    return opened(out)


def turn(processor: Any, *said: str, images: int = 1) -> str:
    """A conversation whose first question is about pictures; every second text is an answer."""
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": t}]} for i, t in enumerate(said)
    ]
    turns[0]["content"] = [*[{"type": "image"}] * images, *turns[0]["content"]]  # pyright: ignore
    return processor.apply_chat_template(turns, add_generation_prompt=True)


def batch(processor: Any, *prompts: str, images: list[list[Image.Image]]) -> Any:
    return processor(images=images, text=list(prompts), add_special_tokens=False)


@torch.no_grad()
def official(parts: Path, pixels: torch.Tensor, ids: torch.Tensor, img: int, imgd: int) -> torch.Tensor:
    """The logits of one prompt by the formulas of modeling_LMEye.py, with transformers' own classes."""
    llm = AutoModelForCausalLM.from_pretrained(parts / "llm", dtype=torch.float32).eval()
    clip = CLIPModel.from_pretrained(parts / "clip").eval()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ NET[f"{name}.weight"].T + NET[f"{name}.bias"]

    table = llm.get_input_embeddings().weight
    before = torch.where((ids < len(table))[..., None], table[ids.clamp(max=len(table) - 1)], 0)  # new rows are zero
    image = clip.visual_projection(clip.vision_model(pixel_values=pixels[None]).pooler_output)
    before[ids == img] += linear("imgLinear", image) + NET["embedding_img"]
    before[ids == imgd] += NET["embedding_imgd"]
    hidden = llm.model(inputs_embeds=before).last_hidden_state
    request = linear("llm2clip", hidden[ids == imgd][:1])
    prompts = linear("promptMlp", image).view(1, 3, 8)
    text = clip.text_model
    ends = text.embeddings(torch.tensor([[tiny_lmeye.BEGIN, 0, 0, 0, 0, tiny_lmeye.END]]))
    x = torch.cat([ends[:, :1], prompts, request[:, None], ends[:, -1:]], 1)
    mask = torch.full((6, 6), -torch.inf).triu(1)[None, None]
    for layer in text.encoder.layers:
        x = layer(x, mask)
    answer = clip.text_projection(text.final_layer_norm(x)[:, -1])
    before[ids == imgd] += linear("imgdLinear", answer).view(2, D)
    return llm(inputs_embeds=before).logits


def test_the_fused_model_is_the_official_one(parts: Path, made: tuple[Any, Any]) -> None:
    model, processor = made
    given = batch(processor, turn(processor, "w5 w6"), images=[[picture(60, 40)]])
    ids, (graft,) = given["input_ids"], model.config.grafts
    assert processor.tokenizer.decode(ids[0][-8:]).count("<|fuse:eyes.imgd|>") == 2
    (branch,) = model.config.branches
    pixels = given["branches.clip.pixel_values"][0]
    wanted = official(parts, pixels, ids, branch["token_id"], graft["token_ids"]["imgd"])
    with torch.no_grad():
        found = model(**given).logits
    rows = wanted.shape[-1]
    assert (found[..., :rows] - wanted).abs().max() < 1e-5


def test_ask_says_what_generate_says(parts: Path, made: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = made
    picture(60, 40).save(tmp_path / "photo.png")
    assert merge(parts, tmp_path / "out").code == 0
    ran = fuse_here("ask", tmp_path / "out", "w5 w6", "--image", tmp_path / "photo.png", "--max-tokens", "6", "--json")
    assert (ran.code, ran.err) == (0, ""), ran
    given = batch(processor, turn(processor, "w5 w6"), images=[[picture(60, 40)]])
    words = model.generate(**given, **{**HOW, "eos_token_id": model.generation_config.eos_token_id})
    assert (
        json.loads(ran.out)["answer"]
        == processor.decode(words[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_and_without(made: tuple[Any, Any], beams: int) -> None:
    """A batch with left padding, a prompt without an image and one with two, greedy and with beams."""
    model, processor = made
    prompts = [turn(processor, "w5 w6"), turn(processor, "w7", images=2), turn(processor, "w8 w9 w10", images=0)]
    images = [[picture(60, 40)], [picture(40, 60, 1), picture(50, 50, 2)], []]
    given = batch(processor, *prompts, images=images)
    assert (given["attention_mask"] == 0).any()
    cached = model.generate(**given, **HOW, num_beams=beams)
    assert torch.equal(cached, model.generate(**given, **HOW, num_beams=beams, use_cache=False))
    for row, (prompt, some) in enumerate(zip(prompts, images, strict=True)):
        alone = model.generate(**batch(processor, prompt, images=[some]), **HOW, num_beams=beams)
        assert torch.equal(cached[row, -6:], alone[0, -6:])


def test_the_network_runs_once_for_a_prompt(made: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = made
    passes, run = [], model.grafts["eyes"].clip.forward
    monkeypatch.setattr(model.grafts["eyes"].clip, "forward", lambda x: passes.append(len(x)) or run(x))
    given = batch(processor, turn(processor, "w5 w6"), images=[[picture(60, 40)]])
    model.generate(**given, **HOW, num_beams=2)
    assert passes == [1]


def test_a_second_turn_goes_on_from_the_cache(made: tuple[Any, Any]) -> None:
    """With a cache only the new words are read; the whole conversation read anew gives the same."""
    model, processor = made
    image = [[picture(60, 40)]]
    given = batch(processor, turn(processor, "w5 w6"), images=image)
    first = model.generate(**given, **HOW, return_dict_in_generate=True, use_cache=True)
    said = torch.cat([given["input_ids"], first.sequences[:, -6:]], 1)
    ids = torch.cat([said, torch.tensor([[11, 12, 13]])], 1)
    mask = torch.ones_like(ids)
    second = model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **HOW)
    pixels = {key: value for key, value in given.items() if key.startswith("branches.")}
    whole = model.generate(input_ids=ids, attention_mask=mask, **pixels, **HOW)
    assert torch.equal(second[:, -6:], whole[:, -6:])


def test_every_picture_of_a_conversation_has_its_slots(made: tuple[Any, Any]) -> None:
    _, processor = made
    text = turn(processor, "w5", "w6", "w7")
    assert text.count("<|fuse:eyes.imgd|>") == 2
    assert text.index("w5") < text.index("<|fuse:eyes.imgd|>") < text.index("w6")
    assert turn(processor, "w5", images=0).count("<|fuse:eyes.imgd|>") == 0


def test_a_text_prompt_is_the_language_models(parts: Path, made: tuple[Any, Any]) -> None:
    model, processor = made
    llm = AutoModelForCausalLM.from_pretrained(parts / "llm", dtype=torch.float32).eval()
    given = batch(processor, turn(processor, "w5 w6 w7", images=0), images=[[]])
    with torch.no_grad():
        wanted = llm(**{key: given[key] for key in ("input_ids", "attention_mask")}).logits
        assert torch.equal(model(**given).logits[..., : wanted.shape[-1]], wanted)


def test_scale_0_is_the_static_mapping_alone(parts: Path, made: tuple[Any, Any], tmp_path: Path) -> None:
    """No slots, no second pass: bit by bit what a recipe without the graft gives."""
    assert merge(parts, tmp_path / "out", ", scale: 0").code == 0
    silent, processor = opened(tmp_path / "out")
    assert (
        merge(parts, tmp_path / "plain", recipe=RECIPE.replace("grafts: [{from: donor, name: eyes%s}]\n", "")).code == 0
    )
    plain, other = opened(tmp_path / "plain")
    given = batch(processor, turn(processor, "w5 w6"), images=[[picture(60, 40)]])
    same = batch(other, turn(other, "w5 w6"), images=[[picture(60, 40)]])
    assert torch.equal(given["input_ids"], same["input_ids"])
    model, heard = made
    loud = batch(heard, turn(heard, "w5 w6"), images=[[picture(60, 40)]])
    with torch.no_grad():
        rows = plain.config.text_config.vocab_size
        assert torch.equal(silent(**given).logits[..., :rows], plain(**same).logits)
        assert loud["input_ids"].shape[1] == given["input_ids"].shape[1] + 2
        assert not torch.allclose(model(**loud).logits[0, -1, :rows], plain(**same).logits[0, -1], atol=1e-3)


def test_slots_behind_the_image(parts: Path, tmp_path: Path) -> None:
    assert merge(parts, tmp_path / "out", ", place: image, scale: 0.5").code == 0
    model, processor = opened(tmp_path / "out")
    given = batch(processor, turn(processor, "w5 w6"), images=[[picture(60, 40)]])
    branch, graft = model.config.branches[0]["token_id"], model.config.grafts[0]["token_ids"]["imgd"]
    at = given["input_ids"][0].tolist().index(branch)
    assert given["input_ids"][0, at : at + 4].tolist()[:3] == [branch, graft, graft]
    assert (given["input_ids"] == graft).sum() == 2
    cached = model.generate(**given, **HOW)
    assert torch.equal(cached, model.generate(**given, **HOW, use_cache=False))


def test_saved_and_loaded_again(made: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = made
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, other = opened(tmp_path)
    given = batch(processor, turn(processor, "w5 w6"), images=[[picture(60, 40)]])
    same = batch(other, turn(other, "w5 w6"), images=[[picture(60, 40)]])
    with torch.no_grad():
        assert torch.equal(again(**same).logits, model(**given).logits)
        half, _ = opened(tmp_path, dtype=torch.bfloat16)
        near = half(**given).logits.float()
    assert (near - model(**given).logits).abs().max() < 0.1


REFUSED = {
    "vision: []\ngrafts: [{from: donor}]\n": (2, "grafts.0: lmeye works on images, and vision has no branch"),
    "vision: [{name: wide, encoder: clip, projector: wide.safetensors}]\ngrafts: [{from: donor}]\n": (
        2, "grafts.0: lmeye cannot look through wide: it gives no image as one vector, as a projector that "
        "`fuse import lmeye` makes reads it (`image: BRANCH` names another)",
    ),
    "vision: [{name: clip, encoder: clip, projector: donor}]\ngrafts: [{from: donor, place: end}]\n": (
        2, "grafts.0.place: 'end' is not one of question, image",
    ),
    "vision: [{name: clip, encoder: clip, projector: donor}]\ngrafts: [{from: donor, slots: 3}]\n": (
        2, "grafts.0.slots: a graft of kind lmeye has no slots (it takes: place, name, scale, tower, image, fold, bridge)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_refuses(parts: Path, tmp_path: Path, text: str) -> None:
    recipe_members._projector(parts / "wide.safetensors", 12)
    head = "members: {llm: llm}\nlanguage: {method: linear, weights: {llm: 1}}\n"
    ran = merge(parts, tmp_path / "out", recipe=head + text)
    code, told = REFUSED[text]
    assert (ran.code, ran.err.split(": ", 2)[2]) == (code, told + "\n"), ran.err
    assert not (tmp_path / "out").exists()


def test_refuses_another_width(parts: Path, tmp_path: Path) -> None:
    file = tiny_lmeye.save_pickle(tiny_lmeye.network(24), tmp_path / "checkpoint.pth")
    assert fuse_forked("import", "lmeye", file, parts / "narrow", "--set", f"clip={parts / 'clip'}").code == 0
    ran = merge(parts, tmp_path / "out", recipe=RECIPE.replace("from: donor", "from: narrow").replace("%s", ""))
    told = f"fuse: {parts / 'narrow'}: eyes cannot be grafted into llm: its hidden size is {D}, and the network reads and writes 24\n"
    assert (ran.code, ran.err) == (3, told)
    assert not (tmp_path / "out").exists()
