"""Fused folders from recipes: what lies in them, and that the fused model computes what its members compute."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
)

from fuse.errors import CheckpointError
from fuse.output import check_written
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from tests import fused_members, layouts, tiny_processors, tiny_vlm
from tests.cli import fuse_here
from tests.fused_members import CORE
from tests.members import TEMPLATE, save_member, words

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
ASK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w5 w6 w7"}]}]


def run(folder: Path, recipe: str) -> Path:
    (folder / "r.yaml").write_text(recipe)
    ran = fuse_here("merge", folder / "r.yaml", folder / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    return folder / "out"


def load(folder: Path) -> tuple[Any, Any]:
    """Model and processor; nothing may be missing, unexpected or of another shape."""
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval(), AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_one_branch_computes_what_the_member_computes(kind: str, tmp_path: Path) -> None:
    tiny_processors.save(tiny_vlm.build(kind, 1), tmp_path / "a")
    out = run(tmp_path, "members: {a: a}\nlanguage: {method: linear, weights: 1}\nvision: [a]\noutput: {model: fuse}\n")
    (model, ours), (own, theirs) = load(out), load(tmp_path / "a")
    text = ours.apply_chat_template(ASK, tokenize=False)
    assert text == theirs.apply_chat_template(ASK, tokenize=False)
    batch = theirs(images=[PICTURE], text=[text], return_tensors="pt")
    with torch.no_grad():
        got, want = model(**ours(images=[PICTURE], text=[text])).logits, own(**batch).logits
    assert got.shape[1] == want.shape[1]
    assert (got[..., : want.shape[2]] - want).abs().max() < 1e-5
    assert model.config.host_type == kind


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only LLM and two VLMs of its base: Idefics3 with tile markers, LLaVA-NeXT."""
    root = tmp_path_factory.mktemp("three")
    fused_members.save_llm(root / "llm")
    fused_members.save("idefics3", root / "tiles")
    fused_members.save("llava_next", root / "views", seed=2)
    return root


THREE = (
    "members: {{llm: {0}/llm, tiles: {0}/tiles, views: {0}/views}}\n"
    "language: {{method: linear, weights: {{llm: 0.25, views: 0.75}}}}\nvision: [tiles, views]\n"
    "output: {{host: llm}}\nprompt: {{template: views}}\n"
)


def test_text_llm_reads_two_vlms(three: Path, tmp_path: Path) -> None:
    out = run(tmp_path, THREE.format(three))
    model, processor = load(out)
    config = config_of(out)
    assert [b["token"] for b in config["branches"]] == ["<|fuse:tiles|>", "<|fuse:views|>"]
    assert (config["model_type"], config["host_type"], config["image_token"]) == ("fuse", "llama", "<image>")
    stored, llm, tiles, views = (
        load_file(f / "model.safetensors") for f in (out, three / "llm", three / "tiles", three / "views")
    )
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(
        stored[f"language_model.{name}"], 0.25 * llm[name] + 0.75 * views[f"language_model.{name}"]
    )
    markers = fused_members.SPECIAL["idefics3"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = tokenizer.convert_tokens_to_ids(markers)
    assert rows == list(range(CORE, CORE + len(markers)))  # the LLM's own rows without a token
    for head, theirs in (("model.embed_tokens.weight", "model.text_model.embed_tokens.weight"),
                         ("lm_head.weight", "lm_head.weight")):  # fmt: skip
        table = stored[f"language_model.{head}"]
        assert torch.equal(table[rows], tiles[theirs][CORE : CORE + len(markers)])
        shared = 0.25 * llm[head][:CORE] + 0.75 * views[f"language_model.{head}"][:CORE]
        torch.testing.assert_close(table[:CORE], shared)
    for key, tensor in tiles.items():
        if key.startswith(("model.vision_model.", "model.connector.")):
            assert torch.equal(stored["branches.tiles." + key.removeprefix("model.")], tensor)
    batch = processor(images=[PICTURE], text=[processor.apply_chat_template(ASK, tokenize=False)])
    with torch.no_grad():
        got = model.get_image_features(**batch)
        want = torch.cat([own_features(three / name) for name in ("tiles", "views")])
    assert (got - want).abs().max() < 1e-6
    written = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    assert written[:3] == ["<fake_token_around_image>", "<row_1_col_1>", "<|fuse:tiles|>"]
    assert written[-4:] == ["<|fuse:views|>", "w5", "w6", "w7"]
    said = model.generate(**batch, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
    assert not set(said) & set(model.config.placeholder_ids)


def own_features(folder: Path) -> torch.Tensor:
    """A member's own visual tokens of the picture, [n, D]."""
    model, processor = load(folder)
    batch = processor(images=[PICTURE], text=[processor.image_token], return_tensors="pt")
    given = {k: batch[k] for k in ("pixel_values", "image_sizes", "pixel_attention_mask") if k in batch}
    found = model.get_image_features(**given, return_dict=True).pooler_output
    found = list(found) if isinstance(found, list | tuple) else [found]
    return torch.cat([tokens.flatten(0, -2) for tokens in found])


def test_the_folder_and_its_papers(three: Path, tmp_path: Path) -> None:
    (three / "tiles" / "evil.py").write_text("raise SystemExit")
    out = run(tmp_path, THREE.format(three) + "")
    (three / "tiles" / "evil.py").unlink()
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "branches", "chat_template.jinja", "config.json", "fuse.json", "generation_config.json",
        "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert sorted(p.name for p in (out / "branches" / "tiles").iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads((out / "processor_config.json").read_text()) == {"processor_class": "FusedProcessor"}
    generation = json.loads((out / "generation_config.json").read_text())
    ids = [b["token_id"] for b in config_of(out)["branches"]]
    assert generation["suppress_tokens"] == sorted(ids) and generation["eos_token_id"] == 2
    provenance = json.loads((out / "fuse.json").read_text())
    assert provenance["host"] == "llm" and [b["name"] for b in provenance["branches"]] == ["tiles", "views"]
    card = (out / "README.md").read_text()
    assert "| tiles | idefics3 | idefics3_vision | all |" in card and "import fuse" in card
    assert "Made without training: 21 tensors merged, 82 copied, 19 left out" in card
    described = {t["content"]: t for t in json.loads((out / "tokenizer.json").read_text())["added_tokens"]}
    assert all(described[f"<|fuse:{name}|>"]["special"] for name in ("tiles", "views"))


def test_placeholders_behind_a_full_table_are_zero_rows(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        tiny_processors.save(tiny_vlm.build("llava", seed), tmp_path / name)
    out = run(tmp_path, "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\nvision: [a, b]\n")
    stored, a, b = (load_file(f / "model.safetensors") for f in (out, tmp_path / "a", tmp_path / "b"))
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        assert stored[name].shape == (98, 32) and not stored[name][96:].any()
        torch.testing.assert_close(stored[name][:96], (a[name] + b[name]) / 2)
    assert config_of(out)["text_config"]["vocab_size"] == 98
    assert [b["token_id"] for b in config_of(out)["branches"]] == [96, 97]
    load(out)
    assert "; 2 rows of zeros for the places of visual tokens): " in fuse_here("plan", tmp_path / "r.yaml").out


@pytest.mark.parametrize(
    "language", ["method: linear, weights: {a: 1}", "method: linear, weights: {a: 1}, embeddings: b"]
)
def test_concatenation_only(language: str, tmp_path: Path) -> None:
    """The language of one member, whose rows may come from the host."""
    for name, seed in (("a", 1), ("b", 2)):
        tiny_processors.save(tiny_vlm.build("llava", seed), tmp_path / name)
    out = run(tmp_path, f"members: {{a: a, b: b}}\nlanguage: {{{language}}}\nvision: [b, a]\n")
    stored, a, b = (load_file(f / "model.safetensors") for f in (out, tmp_path / "a", tmp_path / "b"))
    for name in (key for key in a if key.startswith("language_model.")):
        table = "embed" in name or "lm_head" in name
        want = b[name] if table and "embeddings" in language else a[name]
        torch.testing.assert_close(stored[name][:96] if table else stored[name], want, rtol=0, atol=0)


def test_merging_only(tmp_path: Path) -> None:
    """Vision of one member, whose own parts may be mixed with another's."""
    for name, seed in (("a", 1), ("b", 2)):
        tiny_processors.save(tiny_vlm.build("llava", seed), tmp_path / name)
    out = run(tmp_path, "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\noutput: {model: fuse, host: b}\n"
              "vision: [{from: a, merge: {method: linear, weights: {a: 0.75, b: 0.25}}, max_tokens: 2, prune: cls}]\n")  # fmt: skip
    stored, a, b = (load_file(f / "model.safetensors") for f in (out, tmp_path / "a", tmp_path / "b"))
    name = "multi_modal_projector.linear_1.weight"
    torch.testing.assert_close(stored[f"branches.a.{name}"], 0.75 * a[name] + 0.25 * b[name])
    (branch,) = config_of(out)["branches"]
    assert (branch["max_tokens"], branch["prune"]) == (2, "cls")
    assert json.loads((out / "fuse.json").read_text())["dropped"] == []


def test_flat_qwen_configs_become_text_configs(tmp_path: Path) -> None:
    tiny_processors.save(tiny_vlm.build("qwen2_vl", 1), tmp_path / "new")
    layouts.to_layout(tmp_path / "new", tmp_path / "old", "old")
    flat = config_of(tmp_path / "old")
    flat.pop("layer_types")  # younger than these files
    (tmp_path / "old" / "config.json").write_text(json.dumps(flat))
    out = run(
        tmp_path, "members: {a: old}\nlanguage: {method: linear, weights: 1}\nvision: [a]\noutput: {model: fuse}\n"
    )
    got, want = AutoConfig.from_pretrained(out).text_config, AutoConfig.from_pretrained(tmp_path / "new").text_config
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters",
                "bos_token_id", "eos_token_id", "max_position_embeddings", "layer_types"):  # fmt: skip
        mine, theirs = (getattr(c, key) for c in (got, want))
        if key == "rope_parameters":  # the old word for M-RoPE stays beside the new one
            mine = {k: v for k, v in mine.items() if k != "type"}
        assert mine == theirs, key
    load(out)


def test_dtype_of_the_output(tmp_path: Path) -> None:
    tiny_processors.save(tiny_vlm.build("llava", 1), tmp_path / "a")
    out = run(tmp_path, "members: {a: a}\nlanguage: {method: linear, weights: 1}\nvision: [a]\n"
              "output: {model: fuse, dtype: bfloat16, shard_size: 50kB}\n".replace("kB", "KB"))  # fmt: skip
    config = config_of(out)
    assert {config["dtype"], config["text_config"]["dtype"], config["branches"][0]["config"]["dtype"]} == {"bfloat16"}
    assert (out / "model.safetensors.index.json").exists()
    model, _ = load(out)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_was_written_is_compared_with_the_plan(three: Path, tmp_path: Path) -> None:
    out = run(tmp_path, THREE.format(three))
    plan = make_plan(load_recipe(tmp_path / "r.yaml"))
    check_written(plan, out)
    config = config_of(out)
    config["branches"].pop()
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"tensor 'branches\.views\..*' belongs to no branch and no graft of config\.json"
    ):
        check_written(plan, out)
    config["text_config"]["num_hidden_layers"] = 1
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="belongs to none of the 1 layers"):
        check_written(plan, out)


def test_a_host_without_words_for_images_borrows_a_template(three: Path, tmp_path: Path) -> None:
    recipe = THREE.format(three).replace("prompt: {template: views}\n", "")
    out = run(tmp_path, recipe)
    assert (out / "chat_template.jinja").read_text() == tiny_processors.template("idefics3")
    said = "  ! chat template: tiles's, as llm has none with a place for images"
    assert said in fuse_here("plan", tmp_path / "r.yaml").out.splitlines()


def test_without_any_template_there_is_none(tmp_path: Path) -> None:
    member = tiny_processors.save(tiny_vlm.build("llava", 1), tmp_path / "a")
    (member / "chat_template.jinja").unlink()
    out = run(tmp_path, "members: {a: a}\nlanguage: {method: linear, weights: 1}\nvision: [a]\noutput: {model: fuse}\n")
    assert not (out / "chat_template.jinja").exists()
    said = "  ! chat template: no branch has one that the host can speak; none is written"
    assert said in fuse_here("plan", tmp_path / "r.yaml").out.splitlines()


def test_paligemma_gets_the_prompt_that_its_processor_writes(tmp_path: Path) -> None:
    member = tiny_processors.save(tiny_vlm.build("paligemma", 1), tmp_path / "a")
    (member / "chat_template.jinja").unlink()
    out = run(tmp_path, "members: {a: a}\nlanguage: {method: linear, weights: 1}\nvision: [a]\noutput: {model: fuse}\n")
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=False)
    assert processor.apply_chat_template(ASK, tokenize=False) == "<image><s>w5 w6 w7\n"


def test_native_output_stays_native(tmp_path: Path) -> None:
    save_member(tiny_vlm.build("llava", 1), tmp_path / "a", words(90), {"<image>": 90}, template=TEMPLATE)
    out = run(tmp_path, "members: {a: a}\nlanguage: {method: linear, weights: 1}\nvision: [a]\n")
    assert config_of(out)["model_type"] == "llava" and not (out / "branches").exists()


def test_an_llm_and_an_encoder_from_files(tmp_path: Path) -> None:
    """Encoder branches alone: the first member is the host, and gets an image token of its own, never sampled."""
    fused_members.save_llm(tmp_path / "llm")
    tower = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(tower).save_pretrained(tmp_path / "dino")
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        tmp_path / "dino"
    )
    save_file({"weight": torch.randn(32, 16) * 0.1, "bias": torch.zeros(32)}, tmp_path / "p.safetensors")
    out = run(tmp_path, "members: {llm: llm}\nlanguage: {method: linear, weights: 1}\n"
              "vision: [{name: dino, encoder: dino, projector: p.safetensors}]\n")  # fmt: skip
    model, processor = load(out)
    config = config_of(out)
    assert (config["host_type"], config["image_token"], config["image_token_id"]) == ("llama", "<image>", CORE)
    assert json.loads((out / "generation_config.json").read_text())["suppress_tokens"] == [CORE, CORE + 1]
    batch = processor(images=[PICTURE], text=["<image> w5 w6"], add_special_tokens=False)
    assert batch["input_ids"].tolist() == [[*[CORE + 1] * 4, 5, 6]]
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()
    stored, llm = load_file(out / "model.safetensors"), load_file(tmp_path / "llm" / "model.safetensors")
    assert all(torch.equal(stored[f"language_model.{key}"], tensor) for key, tensor in llm.items())
