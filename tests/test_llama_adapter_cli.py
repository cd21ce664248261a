"""LLaMA-Adapter from an official file to an answer: import, recipe, prompts with and without images, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, LlamaForCausalLM

from fuse.ask import load
from fuse.grafts.llama_adapter import LlamaAdapterGraft
from fuse.grafts.slots import slots_of
from tests import recipe_members
from tests.cli import Ran, fuse_forked, fuse_here
from tests.official_adapters import HEADS, save_first, save_multimodal
from tests.original_branches import difference, picture

RECIPE = {"members": {"llm": {"path": "llm"}}, "language": {"method": "linear", "weights": {"llm": 1}}}
EYES = [{"name": "clip", "encoder": "clip", "projector": "second"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA, a CLIP, donors of both versions, and fused folders of both."""
    folder = tmp_path_factory.mktemp("adapter")
    recipe_members.save("llama", folder / "llm", 0)
    recipe_members.save_encoder(folder / "clip")
    config = json.loads((folder / "llm" / "config.json").read_text())
    save_first(folder / "first.pth", config)
    save_multimodal(folder / "BIAS-7B.pth", config)
    for ran in (
        fuse_forked("import", "llama_adapter", folder / "first.pth", folder / "first"),
        fuse_here(
            "import", "llama_adapter", folder / "BIAS-7B.pth", folder / "second", "--host", folder / "llm",
            "--set", f"visual_heads={HEADS}",
        ),
    ):  # fmt: skip
        assert ran.code == 0, ran.err
    picture(60, 40).save(folder / "photo.png")
    for name, told in (
        ("one", {"grafts": [{"from": "first"}]}),
        ("raw", {"grafts": [{"from": "first", "gate": "raw"}]}),
        ("two", {"vision": EYES, "grafts": [{"from": "second", "name": "eyes"}]}),
        ("both", {"vision": EYES, "grafts": [{"from": "second", "name": "eyes"}, {"from": "first"}]}),
        ("silent", {"vision": EYES, "grafts": [{"from": "second", "scale": 0}]}),
        ("plain", {"vision": EYES}),
    ):
        made = merge(folder, name, **told)
        assert (made.code, made.err) == (0, ""), made
    return folder


def merge(folder: Path, name: str, **told: Any) -> Ran:
    (folder / f"{name}.json").write_text(json.dumps({**RECIPE, **told}))
    return fuse_here("merge", folder / f"{name}.json", folder / name)


def alone(place: Path, out: str, name: str) -> tuple[Any, LlamaAdapterGraft]:
    """The host by transformers alone, and a graft of a fused folder beside it, attached by hand."""
    host: Any = LlamaForCausalLM.from_pretrained(place / "llm").eval()
    entry = next(g for g in json.loads((place / out / "config.json").read_text())["grafts"] if g["name"] == name)
    graft = LlamaAdapterGraft(entry["config"]).eval()
    held = load_file(place / out / "model.safetensors")
    prefix = f"grafts.{name}."
    graft.load_state_dict({k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)})
    graft.attach(slots_of(host))
    return host, graft


@torch.no_grad()
@pytest.mark.parametrize("name", ["one", "raw"])
def test_version_1_beside_a_text_host(place: Path, name: str) -> None:
    ids = torch.tensor([[5, 9, 33, 21]])
    host, graft = alone(place, name, "llama_adapter")
    assert graft.config["gate"] == {"one": "tanh", "raw": "raw"}[name]
    assert list(load(place / name).model.config.grafts[0]["tokens"]) == []
    assert difference(load(place / name).model(ids).logits, host(ids).logits) < 1e-5
    plain: Any = LlamaForCausalLM.from_pretrained(place / "llm")
    assert difference(host(ids).logits, plain(ids).logits) > 1e-3


@torch.no_grad()
def test_version_2_sees_by_prompts_of_attention_alone(place: Path) -> None:
    """A batch of a prompt with an image and one without, left padded, is the host with those prompts and no tokens."""
    made = load(place / "two")
    token = made.processor.image_token
    photo = Image.open(place / "photo.png")
    given = made.processor(text=[f"{token} w5 w6 w7", "w8 w9"], images=[[photo], []], padding_side="left")
    found = made.model(**given).logits
    host, graft = alone(place, "two", "eyes")
    clip: Any = CLIPModel.from_pretrained(place / "clip").eval()
    vision = clip.vision_model
    seen = vision(pixel_values=given["branches.clip.pixel_values"][0][None]).last_hidden_state
    features = clip.visual_projection(vision.post_layernorm(seen))
    assert graft.visual is not None and features.shape[1] == 17
    placeholder = made.model.config.branches[0]["token_id"]
    for row, visual in enumerate((graft.visual(features), torch.zeros(1, 3, 32))):
        words = given["attention_mask"][row].bool() & (given["input_ids"][row] != placeholder)
        graft.state = {"visual": visual}
        wanted = host(given["input_ids"][row, words][None]).logits[0]
        assert difference(found[row, words, : wanted.shape[-1]], wanted) < 1e-5
        if row == 0:
            graft.state = {"visual": torch.zeros(1, 3, 32)}
            assert difference(host(given["input_ids"][row, words][None]).logits[0], wanted) > 1e-3


@torch.no_grad()
def test_generation_keeps_the_image_and_beams_keep_theirs(place: Path) -> None:
    made = load(place / "both")
    token = made.processor.image_token
    photos = [[picture(60, 40, seed)] for seed in (1, 2)]
    given = made.processor(text=[f"{token} w5 w6 w7", f"{token} w8"], images=photos, padding_side="left")
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 2}
    cached, again = (made.model.generate(**given, use_cache=cache, **how) for cache in (True, False))
    assert torch.equal(cached, again)
    beams = made.model.generate(**given, num_beams=3, **how)
    for row in range(2):
        one = made.processor(text=[(f"{token} w5 w6 w7", f"{token} w8")[row]], images=[photos[row]])
        length = one["input_ids"].shape[1]
        single = made.model.generate(**one, num_beams=3, **how)[0, length:]
        assert beams[row, given["input_ids"].shape[1] :].tolist()[: len(single)] == single.tolist()


@torch.no_grad()
def test_later_words_still_see_the_image(place: Path) -> None:
    """A second turn over the cache reads what one prompt with all words reads."""
    made = load(place / "both")
    token = made.processor.image_token
    photo = [[picture(60, 40)]]
    whole = made.model(**made.processor(text=[f"{token} w5 w6 w7 w8"], images=photo)).logits
    given = made.processor(text=[f"{token} w5 w6"], images=photo)
    first = made.model(**given, use_cache=True)
    later = made.processor(text=["w7 w8"])["input_ids"]
    both = torch.ones(1, given["input_ids"].shape[1] + later.shape[1], dtype=torch.long)
    then = made.model(input_ids=later, attention_mask=both, past_key_values=first.past_key_values).logits
    assert difference(then, whole[:, -2:]) < 1e-5


@torch.no_grad()
def test_saved_again_and_in_half_precision(place: Path, tmp_path: Path) -> None:
    made, plain = load(place / "both"), load(place / "plain")
    given = made.processor(text=[f"{made.processor.image_token} w5 w6"], images=[[picture(60, 40)]])
    wanted = made.model(**given).logits
    made.model.save_pretrained(tmp_path / "again")
    made.processor.save_pretrained(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").model(**given).logits, wanted)
    found = made.model.bfloat16()(**given).logits.float()
    apart = difference(plain.model(**given).logits[..., : wanted.shape[-1]], wanted)
    assert difference(found, wanted) < 0.1 * apart


@torch.no_grad()
def test_scale_0_is_the_host_bit_by_bit(place: Path) -> None:
    silent, plain = load(place / "silent"), load(place / "plain")
    given = plain.processor(text=[f"{plain.processor.image_token} w5 w6"], images=[[picture(60, 40)]])
    assert torch.equal(silent.model(**given).logits, plain.model(**given).logits)


def test_asks(place: Path) -> None:
    for name, image in (("one", ()), ("two", ("--image", place / "photo.png")), ("two", ())):
        ran = fuse_here("ask", place / name, "w5 w6", *image, "--max-tokens", 3, "--json")
        assert (ran.code, ran.err) == (0, ""), ran
        assert json.loads(ran.out)["question"] == "w5 w6"


@pytest.mark.parametrize(
    ("graft", "sentence"),
    [
        ({"from": "first", "gate": "sigmoid"}, "grafts.0.gate: 'sigmoid' is not one of tanh, tanh_float16, raw"),
        ({"from": "first", "length": 3}, "grafts.0: 10 prompts of 3 each are those of 3.33333 blocks, not of 1 to 2"),
        ({"from": "second", "length": 2}, "grafts.0: length is 2, and an image gives 3 visual prompts"),
        ({"from": "first", "fold": True}, "grafts.0.fold: llama_adapter cannot be folded into llm: each token weighs its prompts by a softmax of its own"),
    ],
)  # fmt: skip
def test_refuses(place: Path, graft: dict[str, Any], sentence: str) -> None:
    ran = merge(place, "refused", vision=EYES, grafts=[graft])
    assert ran.code == 2 and ran.err.endswith(f": {sentence}\n") and ran.err.count("\n") == 1, ran.err
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("vision", "graft", "sentence"),
    [
        (None, {}, "grafts.0: llama_adapter works on images, and vision has no branch"),
        ([*EYES, {"name": "other", "encoder": "clip", "projector": "p.safetensors"}], {"image": "other"},
         "grafts.0: llama_adapter cannot look through other: it does not show CLIP's projected tokens, as the projector of `fuse import llama_adapter` does (`image: BRANCH` names another)"),
        ([{"name": "clip", "encoder": "clip", "projector": "p.safetensors"}], {},
         "grafts.0: llama_adapter cannot look through clip: it does not show CLIP's projected tokens, as the projector of `fuse import llama_adapter` does (`image: BRANCH` names another)"),
    ],
)  # fmt: skip
def test_refuses_what_it_cannot_look_through(place: Path, vision: Any, graft: dict[str, Any], sentence: str) -> None:
    recipe_members._projector(place / "p.safetensors", 12)
    told = {"vision": vision} if vision else {}
    ran = merge(place, "blind", **told, grafts=[{"from": "second", **graft}])
    assert ran.code == 2 and ran.err.endswith(f": {sentence}\n") and ran.err.count("\n") == 1, ran.err
    assert not (place / "blind").exists()


def test_finds_the_branch_that_it_can_look_through(place: Path) -> None:
    recipe_members._projector(place / "p.safetensors", 12)
    vision = [{"name": "first", "encoder": "clip", "projector": "p.safetensors"}, *EYES]
    made = merge(place, "found", vision=vision, grafts=[{"from": "second"}])
    assert (made.code, made.err) == (0, ""), made
    assert json.loads((place / "found" / "config.json").read_text())["grafts"][0]["image"] == "clip"
    asked = fuse_here("ask", place / "found", "w5", "--image", place / "photo.png", "--max-tokens", 2, "--json")
    assert (asked.code, asked.err) == (0, ""), asked


def test_refuses_two_images_in_one_prompt(place: Path) -> None:
    photo = place / "photo.png"
    ran = fuse_here("ask", place / "two", "w5", "--image", photo, "--image", photo)
    assert (ran.code, ran.err) == (
        2,
        "fuse: prompt 1 has 2 images, and LLaMA-Adapter v2 reads one (ask about one image at a time)\n",
    )
