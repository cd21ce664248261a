"""LMEye's second generation from a checkpoint and a BLIP-2 folder to answers of a T5 and of a decoder-only host."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    T5ForConditionalGeneration,
)

import fuse  # noqa: F401 - makes the Auto classes know the folder
from tests import recipe_members, tiny_lmeye, tiny_processors
from tests.cli import Ran, fuse_forked, fuse_here
from tests.original_branches import picture
from tests.tiny_encoders import randomise

D, QUERIES = recipe_members.HIDDEN, 4
NET = tiny_lmeye.second(D)
RECIPE = """members: {llm: HOST}
language: {method: linear, weights: {llm: 1}}
vision: [{name: blip, encoder: blip2, projector: donor}]
grafts: [{from: donor, name: eyes}]
output: {dtype: float32}
"""
HOW: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
WORDS = {"d_model": D, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 96}


def blip2() -> Blip2ForConditionalGeneration:
    """A BLIP-2 with four queries and a T5."""
    vision = {
        "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    former = {
        "hidden_size": 6, "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 2,
        "encoder_hidden_size": 12, "vocab_size": 20,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=vision, qformer_config=former, num_query_tokens=QUERIES,
        text_config={"model_type": "t5", "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2, **WORDS},
    )  # fmt: skip
    return randomise(Blip2ForConditionalGeneration(config))  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    whole: Any = blip2()
    whole.save_pretrained(folder / "blip2")
    tiny_lmeye.write_preprocessor(folder / "blip2")
    whole.language_model.save_pretrained(folder / "t5")
    tiny_processors.tokenizer().save_pretrained(folder / "t5")
    recipe_members.save("llama", folder / "llama", 0)
    tiny_lmeye.save_clip(folder / "clip")
    file = tiny_lmeye.save_pickle(NET, folder / "checkpoint_with_epoch1.pth")
    options = ("--set", f"clip={folder / 'clip'}", "--set", f"blip2={folder / 'blip2'}")
    ran = fuse_forked("import", "lmeye", file, folder / "donor", *options)
    assert (ran.code, ran.err) == (0, ""), ran
    return folder


def merge(parts: Path, out: Path, host: str) -> Ran:
    (parts / f"{host}.yaml").write_text(RECIPE.replace("HOST", host))
    return fuse_here("merge", parts / f"{host}.yaml", out)


def opened(folder: Path) -> tuple[Any, Any]:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert {k: list(v) for k, v in report.items() if v} == {}
    return model.eval(), AutoProcessor.from_pretrained(folder)


def prompt(processor: Any, *texts: str) -> Any:
    turns = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in texts
    ]  # fmt: skip
    written = processor.apply_chat_template(turns, add_generation_prompt=True) if processor.chat_template else [
        f"{processor.image_token} {text} " + "<|fuse:eyes.imgq|>" + 3 * "<|fuse:eyes.imgd|>" for text in texts
    ]  # fmt: skip
    images = [[picture(60, 40, i)] for i in range(len(texts))]
    return processor(images=images, text=written, add_special_tokens=False)


@torch.no_grad()
def official(parts: Path, given: Any, ids: dict[str, int], decoded: torch.Tensor) -> torch.Tensor:
    """The logits by the formulas of lmeye_model.py, with transformers' own classes; placeholders are id 0 there."""
    whole: Any = Blip2ForConditionalGeneration.from_pretrained(parts / "blip2", dtype=torch.float32).eval()
    t5 = T5ForConditionalGeneration.from_pretrained(parts / "t5", dtype=torch.float32).eval()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ NET[f"{name}.weight"].T + NET[f"{name}.bias"]

    tokens, mask = given["input_ids"], given["attention_mask"]
    seen = whole.vision_model(torch.stack(given["branches.blip.pixel_values"])).last_hidden_state
    queries = whole.query_tokens.expand(len(seen), -1, -1)
    image = whole.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
    embeds = t5.shared(torch.where(tokens >= min(ids.values()), 0, tokens))
    embeds[tokens == ids["img"]] += linear("language_projection", image).flatten(0, 1)
    embeds[tokens == ids["imgq"]] += NET["instruction_embedding_imgq"]
    embeds[tokens == ids["imgd"]] += NET["instruction_embedding_imgd"]
    state = t5.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    asked = linear("instruction_blip22clip", state[tokens == ids["imgq"]]).view(len(seen), 3, 8)
    text = tiny_lmeye.clip().text_model
    length = 1 + QUERIES + 3 + 1
    dummy = torch.tensor([[tiny_lmeye.BEGIN, *[0] * (length - 2), tiny_lmeye.END]]).expand(len(seen), -1)
    ends = text.embeddings(dummy)
    x = torch.cat([ends[:, :1], linear("instruction_linear", image), asked, ends[:, -1:]], 1)
    causal = torch.full((length, length), -torch.inf).triu(1)[None, None]
    for layer in text.encoder.layers:
        x = layer(x, causal)
    answer = tiny_lmeye.clip().text_projection(text.final_layer_norm(x)[:, -3:])
    embeds[tokens == ids["imgd"]] += linear("instruction_imgdLinear", answer).flatten(0, 1)
    return t5(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=decoded).logits


def placeholders(model: Any) -> dict[str, int]:
    return {"img": model.config.branches[0]["token_id"], **model.config.grafts[0]["token_ids"]}


def test_a_t5_answers_as_the_official_code_does(parts: Path, tmp_path: Path) -> None:
    ran = merge(parts, tmp_path / "out", "t5")
    assert (ran.code, ran.err) == (0, ""), ran
    model, processor = opened(tmp_path / "out")
    given = prompt(processor, "w5 w6 w7", "w8")
    assert (given["attention_mask"] == 0).any()
    assert (given["input_ids"][0] == placeholders(model)["img"]).sum() == QUERIES
    decoded = torch.tensor([[0, 7, 9], [0, 4, 5]])
    wanted = official(parts, given, placeholders(model), decoded)
    with torch.no_grad():
        found = model(**given, decoder_input_ids=decoded).logits
    assert (found[..., : wanted.shape[-1]] - wanted).abs().max() < 1e-5
    cached = model.generate(**given, **HOW, num_beams=2)
    assert torch.equal(cached, model.generate(**given, **HOW, num_beams=2, use_cache=False))
    picture(60, 40).save(tmp_path / "photo.png")
    asked = fuse_here(
        "ask", tmp_path / "out", "w5 w6", "--image", tmp_path / "photo.png", "--max-tokens", "4", "--json"
    )
    assert (asked.code, asked.err) == (0, ""), asked
    assert json.loads(asked.out)["question"] == "w5 w6"


def test_a_decoder_only_host(parts: Path, tmp_path: Path) -> None:
    """As with the authors' ChatGLM: the request is a state of the whole decoder."""
    ran = merge(parts, tmp_path / "out", "llama")
    assert (ran.code, ran.err) == (0, ""), ran
    model, processor = opened(tmp_path / "out")
    given = prompt(processor, "w5 w6 w7", "w8")
    cached = model.generate(**given, **HOW)
    assert torch.equal(cached, model.generate(**given, **HOW, use_cache=False))
    with torch.no_grad():
        loud = model(**given).logits[:, -1]
        model.set_scale("eyes", 0.5)
        assert not torch.allclose(model(**given).logits[:, -1], loud, atol=1e-4)


@pytest.mark.parametrize("host", ["t5", "llama"])
def test_scale_0_leaves_the_host_bit_by_bit(parts: Path, tmp_path: Path, host: str) -> None:
    recipe = RECIPE.replace("HOST", host)
    silent, plain = recipe.replace("name: eyes", "name: eyes, scale: 0"), recipe.replace("grafts:", "# grafts:")
    found = []
    for name, text in (("silent", silent), ("plain", plain)):
        (parts / f"{name}.yaml").write_text(text)
        ran = fuse_here("merge", parts / f"{name}.yaml", tmp_path / name)
        assert (ran.code, ran.err) == (0, ""), ran
        model, processor = opened(tmp_path / name)
        given = processor(images=[[picture(60, 40)]], text=[f"{processor.image_token} w5 w6"])
        start = {"decoder_input_ids": torch.tensor([[0, 7]])} if host == "t5" else {}
        with torch.no_grad():
            found.append(model(**given, **start).logits)
    rows = min(logits.shape[-1] for logits in found)
    assert torch.equal(found[0][..., :rows], found[1][..., :rows])


def test_slots_behind_an_image_stay_in_order(parts: Path, tmp_path: Path) -> None:
    """The request comes first, also from a folder that transformers has saved, whose config.json is sorted."""
    recipe = RECIPE.replace("HOST", "llama").replace("name: eyes", "name: eyes, place: image")
    (parts / "behind.yaml").write_text(recipe)
    ran = fuse_here("merge", parts / "behind.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    model, processor = opened(tmp_path / "out")
    token, ids = processor.image_token, placeholders(model)
    written = processor(images=[[picture(60, 40)]], text=[f"{token} w5"])["input_ids"]
    wanted = [ids["img"]] * QUERIES + [ids["imgq"], *[ids["imgd"]] * 3]
    assert [one for one in written[0].tolist() if one in ids.values()] == wanted
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again, other = opened(tmp_path / "again")
    given = other(images=[[picture(60, 40)]], text=[f"{token} w5"])
    assert torch.equal(given["input_ids"], written)
    with torch.no_grad():
        assert torch.equal(again(**given).logits, model(**given).logits)


def test_a_branch_without_a_q_former(parts: Path, tmp_path: Path) -> None:
    recipe_members._projector(parts / "wide.safetensors", 12)
    recipe = RECIPE.replace("HOST", "llama").replace("projector: donor", "projector: wide.safetensors")
    (parts / "wide.yaml").write_text(recipe)
    ran = fuse_here("merge", parts / "wide.yaml", tmp_path / "out")
    assert ran.code == 2
    assert ran.err.endswith(
        "grafts.0: eyes cannot look through blip: it has no Q-Former, as `fuse import lmeye` makes one of the second "
        "generation (`image: BRANCH` names another)\n"
    )
