"""Grafts from recipe to answer: scale 0 on every host, states that stay with a cache, several grafts, every refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import fuse  # noqa: F401 - makes the Auto classes know the folder
from fuse.model.config import FusedConfig
from fuse.model.fused import FusedForConditionalGeneration
from tests import recipe_members, tiny_grafts, tiny_processors, tiny_text, tiny_vlm
from tests.cli import Ran, fuse_here
from tests.original_branches import picture

HOSTS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3", "gpt2", "opt"]
KINDS = sorted(tiny_grafts.CONFIGS)
IDS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])


def grafted(host: str, scales: dict[str, float]) -> Any:
    """A fused model of a tiny text host without branches, with one random graft for each kind of `scales`."""
    text = tiny_text.build(host).config.to_dict()
    entries = []
    for number, (kind, scale) in enumerate(scales.items()):
        config = tiny_grafts.CONFIGS[kind](tiny_grafts.basis_of(text))
        names = {"lmeye": {"imgd": 2}, "lion": {"hint": 0}}.get(kind, {})
        ids = dict.fromkeys(names, 60 + number)
        entries.append(
            {"name": kind, "kind": kind, "config": config, "scale": scale, "tokens": names, "token_ids": ids}
        )
    torch.manual_seed(0)
    model = FusedForConditionalGeneration(FusedConfig(text_config=text, host_type=text["model_type"], grafts=entries))
    model.language_model.load_state_dict(tiny_text.build(host).state_dict(), strict=False)
    model.tie_weights()
    for kind in scales:
        config = model.config.grafts[list(scales).index(kind)]["config"]
        model.grafts[kind].load_state_dict(tiny_grafts.tensors(kind, config))
    return model.eval()


@torch.no_grad()
def logits(model: Any, **given: Any) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=MASK, **given).logits[MASK.bool()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", HOSTS)
def test_scale_0_leaves_logits_as_they_are_bit_by_bit(host: str, kind: str) -> None:
    plain, silent, heard = grafted(host, {}), grafted(host, {kind: 0.0}), grafted(host, {kind: 0.7})
    assert torch.equal(logits(silent), logits(plain))
    if kind != "lmeye":  # which does something where there is an image
        assert (logits(heard) - logits(plain)).abs().max() > 1e-4
        heard.set_scale(kind, 0.0)
    assert torch.equal(logits(heard), logits(plain))


@pytest.mark.parametrize("kind", ["lion", "lora", "mks2"])
def test_scale_0_leaves_an_encoder_decoder_as_it_is_bit_by_bit(kind: str) -> None:
    start = {"decoder_input_ids": torch.tensor([[0, 5], [0, 9]])}

    @torch.no_grad()
    def said(model: Any) -> torch.Tensor:
        return model(input_ids=IDS, attention_mask=MASK, **start).logits

    plain, silent, heard = grafted("t5", {}), grafted("t5", {kind: 0.0}), grafted("t5", {kind: 0.7})
    assert torch.equal(said(silent), said(plain))
    assert (said(heard) - said(plain)).abs().max() > 1e-4
    heard.set_scale(kind, 0.0)
    assert torch.equal(said(heard), said(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_words_behind_a_cache_are_those_of_a_whole_prompt(kind: str) -> None:
    model = grafted("llama", {kind: 0.7})
    model.generation_config.pad_token_id = 0
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    for more in ({}, {"num_beams": 3}):
        cached = model.generate(input_ids=IDS, attention_mask=MASK, **how, **more)
        whole = model.generate(input_ids=IDS, attention_mask=MASK, use_cache=False, **how, **more)
        assert torch.equal(cached, whole)
    begun = model(input_ids=IDS, attention_mask=MASK, use_cache=True)
    next_ids = begun.logits[:, -1:].argmax(-1)
    mask = torch.cat([MASK, torch.ones_like(next_ids)], 1)
    gone_on = model(input_ids=next_ids, attention_mask=mask, past_key_values=begun.past_key_values).logits[:, -1]
    at_once = model(input_ids=torch.cat([IDS, next_ids], 1), attention_mask=mask).logits[:, -1]
    assert torch.allclose(gone_on, at_once, atol=1e-5)


def test_all_kinds_on_one_host() -> None:
    model = grafted("llama", dict.fromkeys(KINDS, 0.5))
    together = logits(model)
    for kind in KINDS:
        if kind != "lmeye":
            model.set_scale(kind, 0.0)
            assert (logits(model) - together).abs().max() > 1e-5, kind
            model.set_scale(kind, 0.5)
    assert torch.equal(logits(model), together)


# ------------------------------------------------------------------------------------------------ through the CLI

HEAD = "members: {vlm: vlm}\nlanguage: {method: linear, weights: {vlm: 1}}\nvision: [vlm]\noutput: {dtype: float32}\n"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA and a donor of every kind that fits it."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_processors.save(tiny_vlm.build("llava"), folder / "vlm")
    text = json.loads((folder / "vlm" / "config.json").read_text())["text_config"]
    for kind in KINDS:
        tiny_grafts.donor(folder / kind, kind, text)
    return folder


def run(parts: Path, folder: Path, grafts: str, head: str = HEAD, verb: str = "merge") -> Ran:
    recipe = head.replace("vlm: vlm", f"vlm: {parts / 'vlm'}") + grafts.replace("@", f"{parts}/")
    (folder / "recipe.yaml").write_text(recipe)
    return fuse_here(verb, folder / "recipe.yaml", *([folder / "out"] if verb == "merge" else []))


def opened(folder: Path) -> Any:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert {k: list(v) for k, v in report.items() if v} == {}
    return model.eval()


def test_two_kinds_are_merged_saved_loaded_and_asked(parts: Path, tmp_path: Path) -> None:
    ran = run(parts, tmp_path, "grafts: [{from: @mks2, scale: 0.5}, {from: @lion, name: moa, task: region}]\n")
    assert (ran.code, ran.err) == (0, ""), ran
    stored = load_file(tmp_path / "out" / "model.safetensors")
    donor = load_file(parts / "lion" / "graft.safetensors")
    for name, tensor in donor.items():
        assert torch.equal(stored[f"grafts.moa.{name}"], tensor)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [(g["name"], g["kind"], g["scale"]) for g in config["grafts"]] == [("mks2", "mks2", 0.5), ("moa", "lion", 1)]
    told = json.loads((tmp_path / "out" / "fuse.json").read_text())
    assert [graft["name"] for graft in told["grafts"]] == ["mks2", "moa"]
    assert all(len(graft["sha256"]) == 64 for graft in told["grafts"])
    model = opened(tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    again = opened(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    asked = fuse_here("ask", tmp_path / "out", "w5 w6", "--max-tokens", "3", "--set", "moa.task=image", "--json")
    assert asked.code == 0, asked
    regions = logits(model, grafts={"moa": {"task": "region"}})
    assert torch.equal(regions, logits(model))
    assert not torch.equal(logits(model, grafts={"moa": {"task": "image"}}), regions)


def test_a_text_only_host_takes_a_graft(parts: Path, tmp_path: Path) -> None:
    text = tiny_text.build("llama")
    text.save_pretrained(tmp_path / "llm")
    tiny_processors.tokenizer().save_pretrained(tmp_path / "llm")
    tiny_grafts.donor(tmp_path / "memory", "mks2", text.config.to_dict())
    (tmp_path / "recipe.yaml").write_text(
        "members: {llm: llm}\nlanguage: {method: linear, weights: {llm: 1}}\ngrafts: [memory]\n"
    )
    ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    asked = fuse_here("ask", tmp_path / "out", "w5 w6", "--max-tokens", "3")
    assert (asked.code, asked.err) == (0, ""), asked
    blind = fuse_here("ask", tmp_path / "out", "w5", "--image", tmp_path / "none.png")
    assert blind.code == 2, blind


def test_two_branches_and_two_kinds_in_one_model(tmp_path: Path) -> None:
    recipe_members.save("llava", tmp_path / "first", 0)
    recipe_members.save("llava_next", tmp_path / "second", 1)
    text = json.loads((tmp_path / "first" / "config.json").read_text())["text_config"]
    tiny_grafts.donor(tmp_path / "memory", "mks2", text)
    tiny_grafts.donor(tmp_path / "prompts", "llama_adapter", text)
    head = (
        "members: {first: first, second: second}\nlanguage: {method: linear, weights: {first: 1, second: 1}}\n"
        "vision: [first, second]\noutput: {dtype: float32}\n"
    )
    picture(60, 40).save(tmp_path / "photo.png")
    answers = []
    for grafts in ("", "grafts: [{from: memory, router: token_type}, {from: prompts, scale: 0.5}]\n"):
        (tmp_path / "recipe.yaml").write_text(head + grafts)
        ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out", "--force")
        assert (ran.code, ran.err) == (0, ""), ran
        asked = fuse_here("ask", tmp_path / "out", "w5", "--image", tmp_path / "photo.png", "--max-tokens", "2")
        assert (asked.code, asked.err) == (0, ""), asked
        model, processor = opened(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
        batch = processor(images=[picture(60, 40)], text=["<image> w5 w6"], return_tensors="pt")
        with torch.no_grad():
            answers.append(model(**batch).logits[0, -1])
    assert [branch["name"] for branch in model.config.branches] == ["first", "second"]
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    for name in ("mks2", "llama_adapter"):
        model.set_scale(name, 0.0)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits[0, -1], answers[0])


def test_the_plan_tells_of_grafts(parts: Path, tmp_path: Path) -> None:
    ran = run(parts, tmp_path, "grafts: [{from: @mks2, scale: 0.5}]\n", verb="plan")
    assert "  mks2: mks2 (ffn, ffn_residual, linear), scale 0.5, cut from llama of 2 layers\n" in ran.out


REFUSED = {
    "grafts: [null]\n": "fuse: recipe.yaml:5:{column}: grafts.0: is null, and a graft is a donor's folder or keys such as "
    "`from: FOLDER`\n",
    "grafts: [3]\n": "fuse: recipe.yaml:5:{column}: grafts.0: is 3, and a graft is a donor's folder or keys such as "
    "`from: FOLDER`\n",
    "grafts: [{from: nothing}]\n": "fuse: recipe.yaml:5:{column}: grafts.0: {folder}/nothing: there is no such folder "
    "(`from` is a donor folder with graft.json)\n",
    "grafts: [{from: @vlm}]\n": "fuse: {parts}/vlm: holds no graft.json "
    "(`fuse import KIND FILE OUT` makes one of an official checkpoint)\n",
    "grafts: [@mks2, @mks2]\n": "fuse: recipe.yaml:5:{column}: grafts.1: 'mks2' is the name of another graft "
    "(give it a name of its own)\n",
    "grafts: [{from: @mks2, name: vlm}]\n": "fuse: recipe.yaml:5:10: grafts.0: 'vlm' is the name of a branch "
    "(give the graft a name)\n",
    "grafts: [{from: @mks2, task: image}]\n": "fuse: recipe.yaml:5:{column}: grafts.0.task: a graft of kind mks2 has "
    "no task (it takes: router, place, temperature, prompts, name, scale, tower, image, fold, bridge)\n",
    "grafts: [{from: @lion, task: word}]\n": "fuse: recipe.yaml:5:{column}: grafts.0.task: 'word' is not one of "
    "region, image\n",
    "grafts: [{from: @mks2, image: other}]\n": "fuse: recipe.yaml:5:{column}: grafts.0.image: 'other' is no branch "
    "(known: vlm)\n",
    "grafts: [{from: @mks2, scale: .inf}]\n": "fuse: recipe.yaml:5:{column}: .inf is not a finite number\n",
    "grafts: [{from: @mks2, scale: 1.0e+30}]\n": "fuse: recipe.yaml:5:{column}: grafts.0.scale: is 1e+30, and a graft is "
    "heard at most 1000 times over\n",
    "grafts: [{from: @mks2, name: a/b}]\n": "fuse: recipe.yaml:5:{column}: grafts.0.name: a graft cannot be called "
    "'a/b': {mistake}\n",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refuses(parts: Path, tmp_path: Path, text: str) -> None:
    from fuse.names import mistake_in

    ran = run(parts, tmp_path, text)
    told = REFUSED[text].replace("{parts}", str(parts)).replace("{folder}", str(tmp_path))
    told = told.replace("{mistake}", mistake_in("a/b"))
    column = ran.err.partition("recipe.yaml:5:")[2].partition(":")[0]
    assert column.isdigit() or "{column}" not in told, ran.err
    assert (ran.code in (2, 3), ran.err) == (True, told.replace("{column}", column))
    assert not (tmp_path / "out").exists()


BROKEN = {
    "wide": "tensor 'layers.0.down.weight' has shape [33, 8], and graft.json makes it [32, 8]",
    "missing": "tensor 'layers.0.down.weight' is missing, and graft.json promises it",
    "extra": "tensor 'layers.9.down.weight' is not part of this mks2",
    "whole": "tensor 'layers.0.down.weight' has dtype I64, not floats",
}


@pytest.mark.parametrize("how", BROKEN)
def test_refuses_a_donor_that_is_not_what_it_says(parts: Path, tmp_path: Path, how: str) -> None:
    donor = tmp_path / "donor"
    donor.mkdir()
    (donor / "graft.json").write_text((parts / "mks2" / "graft.json").read_text())
    tensors, key = load_file(parts / "mks2" / "graft.safetensors"), "layers.0.down.weight"
    if how == "wide":
        tensors[key] = torch.zeros(33, 8)
    elif how == "missing":
        del tensors[key]
    elif how == "extra":
        tensors["layers.9.down.weight"] = torch.zeros(1)
    else:
        tensors[key] = tensors[key].long()
    save_file(tensors, donor / "graft.safetensors")
    ran = run(parts, tmp_path, "grafts: [{from: donor}]\n")
    assert (ran.code, ran.err) == (3, f"fuse: {donor}/graft.safetensors: {BROKEN[how]}\n")
    assert not (tmp_path / "out").exists()


def test_refuses_a_donor_of_another_width(parts: Path, tmp_path: Path) -> None:
    text = json.loads((parts / "vlm" / "config.json").read_text())["text_config"]
    donor = tiny_grafts.donor(tmp_path / "donor", "mks2", {**text, "hidden_size": 48, "num_attention_heads": 4})
    ran = run(parts, tmp_path, "grafts: [{from: donor, name: memory}]\n")
    assert ran.code == 3
    assert ran.err.startswith(f"fuse: {donor}: memory cannot be grafted into vlm: ")


def test_refuses_what_a_graft_is_not_asked(parts: Path, tmp_path: Path) -> None:
    assert run(parts, tmp_path, "grafts: [{from: @lion}]\n").code == 0
    told = {
        "task=region": "fuse: --set 'task=region' is not GRAFT.KEY=VALUE (such as --set lion.task=region)\n",
        "lino.task=region": "fuse: --set: there is no graft 'lino' (did you mean: lion)\n",
        "lion.task=word": "fuse: graft 'lion': task cannot be 'word'\n",
        "lion.job=region": "fuse: graft 'lion' has no option 'job' (known: task)\n",
    }
    for setting, sentence in told.items():
        ran = fuse_here("ask", tmp_path / "out", "w5", "--set", setting)
        assert (ran.code, ran.err) == (2, sentence)
