"""LaVIN from an official checkpoint to an answer: a recipe on a tiny LLaMA and a tiny CLIP, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from fuse.ask import load
from fuse.grafts.lavin import LavinGraft
from fuse.grafts.slots import slots_of
from tests import recipe_members, tiny_encoders, tiny_lavin
from tests.cli import Ran, fuse_here
from tests.original_branches import difference, picture

RECIPE = {
    "members": {"llm": {"path": "llm"}},
    "language": {"method": "linear", "weights": {"llm": 1}},
    "vision": [{"name": "clip", "encoder": "clip", "projector": "donor"}],
}
PREPARE = {
    "image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": {"height": 56, "width": 56}, "resample": 3,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
ROUTED = {"from": "donor", "tower": "clip", "temperature": 2}
QUESTION = "w5 w6 w7"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA, a CLIP of 8 blocks, donors from checkpoints, and a fused folder with and without the graft."""
    folder = tmp_path_factory.mktemp("lavin")
    recipe_members.save("llama", folder / "llm", 0)
    config = CLIPVisionConfig(
        hidden_size=tiny_lavin.WIDTH, intermediate_size=20, num_hidden_layers=8, num_attention_heads=2, image_size=56,
        patch_size=14, hidden_act="quick_gelu",
    )  # fmt: skip
    tiny_encoders.randomise(CLIPVisionModel(config)).save_pretrained(folder / "clip")
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(PREPARE))
    host = json.loads((folder / "llm" / "config.json").read_text())
    for name, sizes in {"other": {"scope": "block"}, "wide": {"width": 64}, "deep": {"layers": 3}, "towers": {"deep": 4}}.items():  # fmt: skip
        tiny_lavin.donor(folder / name, host, **{"deep": 8, **sizes})
    tiny_lavin.donor(folder / "donor", host, deep=8)
    picture(60, 40).save(folder / "photo.png")
    for name, grafts in (("grafted", [ROUTED]), ("plain", []), ("silent", [{**ROUTED, "scale": 0}])):
        made = merge(folder, name, grafts)
        assert (made.code, made.err) == (0, ""), made
    return folder


def merge(folder: Path, name: str, grafts: list[dict[str, Any]], verb: str = "merge", **changes: Any) -> Ran:
    recipe = folder / f"{name}.json"
    recipe.write_text(json.dumps({**RECIPE, "grafts": grafts, **changes}))
    return fuse_here("plan", recipe) if verb == "plan" else fuse_here("merge", recipe, folder / name)


def inputs(made: Any, folder: Path) -> dict[str, Any]:
    """Two prompts, left padded: one with an image, one without."""
    token = made.processor.image_token
    text = [f"{token} w5 w6 w7", "w8 w9"]
    return made.processor(text=text, images=[[Image.open(folder / "photo.png")], []], padding_side="left")


def by_the_book(model: Any, given: dict[str, Any], rows: list[int]) -> torch.Tensor:
    """Logits as the authors compute them: the modality token in the prompt, in front of the words, seen by itself only,
    and every layer's routes from the first token of what the layer reads. rows: modality of each prompt.
    """
    graft: Any = model.grafts["lavin"]
    language, prompt = model.language_model, model.read(**given)
    left = prompt.attention_mask.shape[1] - prompt.attention_mask.sum(1)
    logits = torch.zeros(*prompt.numbers.shape, model.config.text_config.vocab_size)
    model.set_scale("lavin", 1)  # lets go of the slots
    slots = slots_of(language)["language"]
    for layer, block in enumerate(graft.layers):

        def adapted(x: torch.Tensor, adapter: Any = block["adapter_attn"]) -> torch.Tensor:
            return adapter(x, adapter.route(x[:, 0], 2, True)[:, None], 1.0)

        slots.norm_output(layer, "attention", adapted)
    for row, first in enumerate(left.tolist()):
        token = graft.adapter_modality_embedding.weight[rows[row]][None]
        embeds = torch.cat([token, prompt.embeds[row, first:]])[None]
        length = embeds.shape[1]
        sees = torch.ones(length, length).tril().bool()
        sees[1:, 0] = False
        mask = torch.zeros(length, length).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
        logits[row, first:] = language(inputs_embeds=embeds, attention_mask=mask).logits[0, 1:]
    slots.remove()
    return logits


@torch.no_grad()
def test_the_fused_model_is_the_authors_with_the_token_in_the_prompt(place: Path) -> None:
    made = load(place / "grafted")
    given = inputs(made, place)
    found = made.model(**given).logits
    real = given["attention_mask"].bool()
    wanted = by_the_book(made.model, given, rows=[1, 0])
    assert difference(found[real], wanted[real]) < 1e-5
    assert difference(found[real], by_the_book(made.model, given, rows=[0, 1])[real]) > 1e-3
    asked = made.model(**given, grafts={"lavin": {"modality": "text"}}).logits
    assert difference(asked[real], by_the_book(made.model, given, rows=[0, 0])[real]) < 1e-5


@torch.no_grad()
def test_the_prompt_holds_the_class_tokens_of_every_fourth_block(place: Path) -> None:
    made = load(place / "grafted")
    given = made.processor(text=[f"{made.processor.image_token} w5"], images=[[Image.open(place / "photo.png")]])
    found = made.model.get_image_features(**given)
    (pixels,) = given["branches.clip.pixel_values"]
    squeezed = Image.open(place / "photo.png").convert("RGB").resize((56, 56), Image.Resampling.BICUBIC)
    wanted = (np.asarray(squeezed) / 255 - PREPARE["image_mean"]) / PREPARE["image_std"]
    assert np.abs(pixels.numpy().transpose(1, 2, 0) - wanted).max() < 1 / 255 / 0.22  # one step of a pixel at most
    tower = CLIPVisionModel.from_pretrained(place / "clip").eval()
    adapters: Any = made.model.grafts["lavin"].tower
    kept: list[torch.Tensor] = []
    layers = [block for block in tower.modules() if type(block).__name__ == "CLIPEncoderLayer"]
    for layer, block in zip(adapters, layers, strict=True):

        def adapted(_: Any, __: Any, x: torch.Tensor, adapter: Any = layer["adapter_attn"]) -> torch.Tensor:
            return adapter(x, adapter.route(x, 2, True), 1.0)

        block.layer_norm1.register_forward_hook(adapted)
        block.register_forward_hook(lambda _, __, out: kept.append(out if isinstance(out, torch.Tensor) else out[0]))
    tower(pixels[None])
    weights = load_file(place / "donor" / "projector.safetensors")
    seen = torch.cat([kept[3][:, 0], kept[7][:, 0]])
    hidden = torch.nn.functional.silu(seen @ weights["conv_A.weight"].T + weights["conv_A.bias"])
    assert difference(found, hidden @ weights["conv_B.weight"].T + weights["conv_B.bias"]) < 1e-5


@torch.no_grad()
def test_generation_keeps_the_routes_of_the_prompt(place: Path) -> None:
    made = load(place / "grafted")
    given = inputs(made, place)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "output_logits": True, "return_dict_in_generate": True}  # fmt: skip
    cached = made.model.generate(**given, use_cache=True, **how)
    again = made.model.generate(**given, use_cache=False, **how)
    assert torch.equal(cached.sequences, again.sequences)
    assert difference(torch.stack(cached.logits), torch.stack(again.logits)) < 1e-4
    beams = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 2}
    together = made.model.generate(**given, **beams)
    alone = made.processor(text=["w8 w9"], images=None)
    assert made.model.generate(**alone, **beams)[0, 2:].tolist() == together[1, given["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def test_a_second_turn_goes_on_with_the_same_routes(place: Path) -> None:
    made = load(place / "grafted")
    given = inputs(made, place)
    whole = dict(given)
    more = torch.tensor([[20, 21], [22, 23]])
    whole["input_ids"] = torch.cat([given["input_ids"], more], 1)
    whole["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(more)], 1)
    wanted = made.model(**whole).logits[:, -2:]
    first = made.model(**given, use_cache=True)
    mask = whole["attention_mask"]
    found = made.model(input_ids=more, attention_mask=mask, past_key_values=first.past_key_values).logits
    assert difference(found, wanted) < 1e-5


@torch.no_grad()
def test_scale_0_is_the_host_bit_by_bit(place: Path) -> None:
    silent, plain = load(place / "silent"), load(place / "plain")
    given = inputs(plain, place)
    assert torch.equal(silent.model(**given).logits, plain.model(**given).logits)
    heard = load(place / "grafted")
    assert difference(heard.model(**given).logits, plain.model(**given).logits) > 1e-3
    heard.model.set_scale("lavin", 0)
    assert torch.equal(heard.model(**given).logits, plain.model(**given).logits)
    heard.model.set_scale("lavin", 1)
    assert torch.equal(heard.model(**given).logits, load(place / "grafted").model(**given).logits)


@torch.no_grad()
def test_saved_and_loaded_again(place: Path, tmp_path: Path) -> None:
    made = load(place / "grafted")
    made.model.save_pretrained(tmp_path / "again")
    made.processor.save_pretrained(tmp_path / "again")
    given = inputs(made, place)
    assert torch.equal(load(tmp_path / "again").model(**given).logits, made.model(**given).logits)
    small = made.model.to(torch.bfloat16)
    assert torch.isfinite(small(**given).logits).all()


@torch.no_grad()
def test_parts_from_two_checkpoints(place: Path, tmp_path: Path) -> None:
    """The tower's adapters of one training, the language model's of another (which has both kinds of them)."""
    grafts = [
        {"from": "donor", "parts": "tower", "tower": "clip", "name": "eyes", "route": "official"},
        {"from": "other", "parts": "language", "name": "words", "scale": 0.5},
    ]
    ran = merge(place, "parts", grafts)
    assert (ran.code, ran.err) == (0, ""), ran
    told = json.loads((place / "parts" / "config.json").read_text())["grafts"]
    assert [graft["config"]["parts"] for graft in told] == ["tower", "language"]
    made = load(place / "parts")
    given = inputs(made, place)
    both = made.model(**given).logits
    made.model.set_scale("words", 0)
    eyes = made.model(**given).logits
    plain = load(place / "plain").model(**given).logits
    assert torch.equal(eyes[1], plain[1]) and difference(eyes[0], plain[0]) > 1e-4  # no image, no tower
    assert difference(both[1], plain[1]) > 1e-4
    asked = fuse_here("ask", place / "parts", QUESTION, "--image", place / "photo.png", "--max-tokens", 4)
    assert asked.code == 0, asked.err


@torch.no_grad()
def test_two_of_them_in_one_language_model(place: Path) -> None:
    grafts = [
        {"from": "donor", "parts": "language", "name": "one"},
        {"from": "other", "parts": "language", "name": "two"},
    ]
    ran = merge(place, "two", grafts)
    assert (ran.code, ran.err) == (0, ""), ran
    made = load(place / "two")
    given = inputs(made, place)
    both = made.model(**given).logits
    made.model.set_scale("one", 0)
    assert difference(made.model(**given).logits, both) > 1e-4


def test_asked_on_the_command_line(place: Path) -> None:
    asked = ("ask", place / "grafted", QUESTION, "--image", place / "photo.png", "--max-tokens", 4, "--json")
    for extra in ((), ("--set", "lavin.modality=text")):
        answer = fuse_here(*asked, *extra)
        assert (answer.code, answer.err) == (0, ""), answer
        assert json.loads(answer.out)["question"] == QUESTION
    wrong = fuse_here(*asked, "--set", "lavin.modality=sound")
    assert wrong.code == 2 and "lavin" in wrong.err and "sound" in wrong.err


@pytest.mark.parametrize(
    ("graft", "code", "told"),
    [
        ({"from": "donor"}, 2, "lavin has a part for a vision tower, and names no branch (`tower: BRANCH`, or `parts: language` to leave it out)"),
        ({"from": "donor", "tower": "lens"}, 2, "'lens' is no branch"),
        ({"from": "donor", "tower": "clip", "parts": "language"}, 2, "lavin has no part for a vision tower"),
        ({"from": "towers", "tower": "clip"}, 3, "lavin cannot be grafted into the tower of clip: it has 8 layers, and there are adapters for 4"),
        ({"from": "wide", "tower": "clip"}, 3, "lavin cannot be grafted into llm: has hidden size 32, and the adapters were made for 64"),
        ({"from": "deep", "tower": "clip"}, 3, "lavin cannot be grafted into llm: has 2 layers, and there are adapters for 3"),
        ({"from": "donor", "tower": "clip", "route": "mine"}, 2, "'mine' is not one of per_image, official"),
        ({"from": "donor", "tower": "clip", "temperature": "hot"}, 2, "temperature is 'hot', not a number"),
        ({"from": "donor", "tower": "clip", "task": "image"}, 2, "a graft of kind lavin has no task"),
    ],
)  # fmt: skip
def test_what_is_refused(place: Path, graft: dict[str, Any], code: int, told: str) -> None:
    for verb in ("plan", "merge"):
        ran = merge(place, "refused", [graft], verb)
        assert ran.code == code and told in ran.err, ran
    assert not (place / "refused").exists()


def test_the_grafts_module_is_what_is_on_disk(place: Path) -> None:
    from safetensors import safe_open

    with safe_open(place / "grafted" / "model.safetensors", "pt") as file:
        stored = {name for name in file.keys() if name.startswith("grafts.")}  # noqa: SIM118
    graft = json.loads((place / "grafted" / "config.json").read_text())["grafts"][0]
    assert stored == {f"grafts.lavin.{name}" for name in LavinGraft(graft["config"]).state_dict()}
