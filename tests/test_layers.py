"""Layers stacked from ranges of members' layers: tensors, configs, what is left out, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fuse.anatomy import open_member
from fuse.ask import load
from fuse.layer_kinds import per_layer
from tests import official_adapters, recipe_members, tiny_text, tiny_vlm
from tests.cli import fuse_here
from tests.members import perturbed, save_member
from tests.original_branches import picture

CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=64, bos_token_id=1, eos_token_id=2, max_position_embeddings=128,
)  # fmt: skip
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 base, two fine-tunes, and one of two layers more."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG)
    save_member(base, root / "base", dtype=torch.bfloat16)
    save_member(perturbed(base.float(), 1), root / "a", dtype=torch.bfloat16)
    save_member(perturbed(base.float(), 2), root / "b", dtype=torch.bfloat16)
    deep = LlamaForCausalLM(LlamaConfig(**{**CONFIG.to_dict(), "num_hidden_layers": 6}))
    save_member(deep, root / "deep", dtype=torch.bfloat16)
    return root


def merge(root: Path, out: Path, language: str, members: str = "a: a, b: b", more: str = "") -> Weights:
    recipe = root / f"{out.name}.yaml"
    recipe.write_text(f"members: {{{members}}}\nlanguage: {language}\n{more}\n")
    ran = fuse_here("merge", recipe, out)
    assert (ran.code, ran.err) == (0, "")
    return load_file(out / "model.safetensors")


def weights(root: Path, name: str) -> Weights:
    return load_file(root / name / "model.safetensors")


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def layer_of(tensors: Weights, number: int) -> Weights:
    prefix = f"model.layers.{number}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_stacks_layers(family: Path, tmp_path: Path) -> None:
    language = "{method: passthrough, layers: [{a: [0, 3]}, {deep: [1, 6]}, {a: [2, 4]}]}"
    out = merge(family, tmp_path / "out", language, "a: a, deep: deep")
    a, deep = weights(family, "a"), weights(family, "deep")
    wanted = [(a, 0), (a, 1), (a, 2), *((deep, n) for n in range(1, 6)), (a, 2), (a, 3)]
    for number, (tensors, layer) in enumerate(wanted):
        assert same(layer_of(out, number), layer_of(tensors, layer)), number
    assert len(out) == 9 * len(wanted) + 3 and config_of(tmp_path / "out")["num_hidden_layers"] == 10
    assert all(torch.equal(out[k], a[k]) for k in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"))
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert len(model.model.layers) == 10
    assert fuse_here("ask", tmp_path / "out", "w5 w6", "--max-tokens", 3).code == 0
    dropped = {d["tensor"]: d["reason"] for d in json.loads((tmp_path / "out/fuse.json").read_text())["dropped"]}
    assert dropped["model.layers.0.mlp.up_proj.weight"] == "layer 0 of deep is not among the layers"
    assert dropped["model.embed_tokens.weight"] == "what stands before the layers is a's"
    assert dropped["lm_head.weight"] == "what stands behind the layers is a's"
    assert len(dropped) == 9 + 3


def test_what_stands_behind_the_layers_is_the_last_entrys(family: Path, tmp_path: Path) -> None:
    out = merge(family, tmp_path / "out", "{method: passthrough, layers: [{a: [0, 2]}, {b: [2, 4]}]}")
    a, b = weights(family, "a"), weights(family, "b")
    assert torch.equal(out["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert all(torch.equal(out[k], b[k]) for k in ("model.norm.weight", "lm_head.weight"))
    chosen = merge(
        family, tmp_path / "chosen", "{method: passthrough, embeddings: a, layers: [{a: [0, 2]}, {b: [2, 4]}]}"
    )
    assert torch.equal(chosen["lm_head.weight"], a["lm_head.weight"])


def test_whole_members_are_copies(family: Path, tmp_path: Path) -> None:
    merge(family, tmp_path / "plain", "{method: linear, weights: 1}", "a: a")
    merge(family, tmp_path / "whole", "{method: passthrough}", "a: a")
    merge(family, tmp_path / "stack", "{method: passthrough, layers: [{a: [0, 4]}]}", "a: a")
    merge(family, tmp_path / "two", "{method: passthrough, layers: [{a: [0, 1]}, {a: [1, 4]}]}", "a: a")
    for name in ("whole", "stack", "two"):
        for file in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "plain" / file).read_bytes(), (name, file)


def test_a_duplicate_of_scale_0_changes_nothing(family: Path, tmp_path: Path) -> None:
    scale = '{"model.layers.2.*o_proj*": 0, "model.layers.2.*down_proj*": 0, "*": 1}'
    out = merge(
        family,
        tmp_path / "out",
        f"{{method: passthrough, scale: {scale}, layers: [{{a: [0, 2]}}, {{a: [1, 4]}}]}}",
        "a: a",
    )
    assert not out["model.layers.2.mlp.down_proj.weight"].any() and out["model.layers.2.mlp.up_proj.weight"].any()
    ids = torch.tensor([[1, 5, 9, 17, 30]])
    with torch.no_grad():
        wide, was = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
            for folder in (tmp_path / "out", family / "a")
        )
    assert torch.equal(wide, was)


MERGEKIT = {
    "passthrough": (
        '{method: passthrough, scale: {"model.layers.[2-4].*o_proj*": 0.5, "*": 1}, layers: [{a: [0, 2]}, {b: [1, 4]}]}',
        {"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]},
                    {"sources": [{"model": "b", "layer_range": [1, 4], "parameters":
                                  {"scale": [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]}}]}]},
    ),
    "linear": (
        "{method: linear, weights: {a: 0.75, b: 0.25}, layers: [{a: [0, 2], b: [1, 3]}, {b: [3, 4], a: [3, 4]}]}",
        {"slices": [{"sources": [{"model": "a", "layer_range": [0, 2], "parameters": {"weight": 0.75}},
                                 {"model": "b", "layer_range": [1, 3], "parameters": {"weight": 0.25}}]},
                    {"sources": [{"model": "b", "layer_range": [3, 4], "parameters": {"weight": 0.25}},
                                 {"model": "a", "layer_range": [3, 4], "parameters": {"weight": 0.75}}]}]},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", MERGEKIT)
def test_agrees_with_mergekit(family: Path, tmp_path: Path, method: str) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    language, slices = MERGEKIT[method]
    for source in (source for one in slices["slices"] for source in one["sources"]):
        source["model"] = str(family / source["model"])
    config = {**slices, "merge_method": method, "dtype": "float32"}
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), str(tmp_path / "theirs"), options)
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = merge(family, tmp_path / "ours", language, more="output: {dtype: float32}")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-7)


def test_task_vectors_of_each_layer(family: Path, tmp_path: Path) -> None:
    """Lists over depth run over the output's layers; the base lends its layers of the same numbers."""
    language = "{method: task_arithmetic, weights: {a: [0, 1], b: 0.5}, layers: [{a: [0, 2], b: [0, 2]}, {a: [1, 4]}]}"
    out = merge(family, tmp_path / "out", language, more="base: base\noutput: {dtype: float32}")
    z, a, b = ({k: v.double() for k, v in weights(family, n).items()} for n in ("base", "a", "b"))
    for number, layer in enumerate([0, 1, 1, 2, 3]):
        key = f"model.layers.{layer}.mlp.up_proj.weight"
        wanted = z[key] + number / 4 * (a[key] - z[key]) + (0.5 * (b[key] - z[key]) if number < 2 else 0)
        torch.testing.assert_close(
            out[f"model.layers.{number}.mlp.up_proj.weight"].double(), wanted, rtol=1e-6, atol=1e-6
        )
    norm = "model.norm.weight"
    torch.testing.assert_close(out[norm].double(), a[norm], rtol=1e-6, atol=1e-6)


TYPES = [kind for kind in tiny_text.TEXT_TYPES if kind not in {"t5", "mllama_text_model"}]
SETTINGS = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "smollm3": {"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2},
    "gemma3_text": {"sliding_window_pattern": 2},
    "cohere2": {"sliding_window_pattern": 2},
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_language_model(tmp_path: Path, kind: str) -> None:
    model = tiny_text.build(kind, **SETTINGS.get(kind, {}), bos_token_id=1, eos_token_id=2)
    save_member(model, tmp_path / "a")
    save_member(perturbed(model, 1), tmp_path / "b")
    merge(tmp_path, tmp_path / "out", "{method: passthrough, layers: [{a: [0, 2]}, {b: [1, 2]}, {b: [0, 2]}]}")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    made, was = (AutoConfig.from_pretrained(tmp_path / name) for name in ("out", "a"))
    assert made.num_hidden_layers == 5
    for key in ("layer_types", "no_rope_layers"):
        if (before := getattr(was, key, None)) is not None:
            assert getattr(made, key) == [before[n] for n in (0, 1, 1, 0, 1)]
            assert kind not in SETTINGS or len(set(before)) == 2  # the two layers differ, so that an order shows
    answer = model.generate(torch.tensor([[1, 5, 9, 30]]), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert answer.shape == (1, 16)  # longer than a window, with its cache


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "gemma3_text", "cohere2", "smollm3"])
def test_kinds_that_a_config_leaves_to_its_class(tmp_path: Path, kind: str) -> None:
    """Configs of before `layer_types`: the same list as the class of transformers makes."""
    for number, more in enumerate(({}, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4})):
        folder = tmp_path / str(number)
        save_member(tiny_text.build(kind, num_hidden_layers=7), folder)
        config = {k: v for k, v in config_of(folder).items() if k not in {"layer_types", "no_rope_layers"}}
        (folder / "config.json").write_text(json.dumps(config | more))
        found = per_layer(open_member("a", str(folder), revision=None, relative_to=tmp_path))
        theirs = AutoConfig.from_pretrained(folder)
        assert found["layer_types"] == theirs.layer_types
        assert kind != "smollm3" or found["no_rope_layers"] == theirs.no_rope_layers


def seen(folder: Path, tmp_path: Path) -> None:
    """The folder loads with nothing missing, and answers about an image."""
    picture(60, 40).save(tmp_path / "photo.png")
    load(folder)
    ran = fuse_here("ask", folder, "w5 w6", "--image", tmp_path / "photo.png", "--max-tokens", 4)
    assert (ran.code, ran.err) == (0, ""), ran


@pytest.mark.parametrize(
    "kind", ["llava", "qwen2_vl", "gemma3", "paligemma", "internvl", "llava_onevision", "mistral3"]
)
def test_the_language_model_of_a_multimodal_member(tmp_path: Path, kind: str) -> None:
    recipe_members.save(kind, tmp_path / "vlm", 1)
    recipe_members.save(kind, tmp_path / "other", 2)
    language = "{method: passthrough, layers: [{vlm: [0, 2]}, {other: [0, 2]}, {vlm: [1, 2]}]}"
    out = merge(tmp_path, tmp_path / "out", language, "vlm: vlm, other: other", "vision: [vlm]")
    assert config_of(tmp_path / "out")["text_config"]["num_hidden_layers"] == 5
    vlm, other = (weights(tmp_path, name) for name in ("vlm", "other"))
    marks = [key for key in out if key.endswith("layers.3.mlp.up_proj.weight")]
    key = next(key for key in marks if "vision" not in key and "visual" not in key)
    assert torch.equal(out[key], other[key.replace("layers.3.", "layers.1.")])
    assert all(torch.equal(out[k], vlm[k]) for k in vlm if "vision" in k or "visual" in k)
    seen(tmp_path / "out", tmp_path)


def test_a_config_that_says_the_depth_twice(tmp_path: Path) -> None:
    recipe_members.save("qwen2_vl", tmp_path / "a", 1)
    config = config_of(tmp_path / "a")
    twice = {
        "num_hidden_layers": 2,
        "max_window_layers": 2,
        "text_config": config["text_config"] | {"max_window_layers": 2},
    }
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | twice))
    merge(
        tmp_path, tmp_path / "out", "{method: passthrough, layers: [{a: [0, 2]}, {a: [1, 2]}]}", "a: a", "vision: [a]"
    )
    made = config_of(tmp_path / "out")
    assert made["num_hidden_layers"] == made["text_config"]["num_hidden_layers"] == 3
    assert made["max_window_layers"] == made["text_config"]["max_window_layers"] == 3


def test_the_card_says_whose_layers(family: Path, tmp_path: Path) -> None:
    merge(family, tmp_path / "out", "{method: passthrough, layers: [{a: [0, 2]}, {b: [2, 4]}]}")
    assert "0 tensors merged, 39 copied from `a` and `b`, " in (tmp_path / "out" / "README.md").read_text()


def test_a_fused_folder_with_more_layers(tmp_path: Path) -> None:
    for seed, (name, kind) in enumerate({"llava": "llava", "next": "llava_next", "math": "llama"}.items()):
        recipe_members.save(kind, tmp_path / name, seed)
    language = (
        "{method: linear, weights: {llava: 1, math: 3}, layers: [{llava: [0, 2]}, {llava: [0, 2], math: [0, 2]}]}"
    )
    members = "llava: llava, next: next, math: math"
    out = merge(tmp_path, tmp_path / "out", language, members, "vision: [llava, next]")
    assert config_of(tmp_path / "out")["text_config"]["num_hidden_layers"] == 4
    one, two = weights(tmp_path, "llava"), weights(tmp_path, "math")
    rest = "layers.1.mlp.up_proj.weight"
    wanted = (one[f"language_model.model.{rest}"] + 3 * two[f"model.{rest}"]) / 4
    torch.testing.assert_close(out["language_model.model.layers.3.mlp.up_proj.weight"], wanted)
    dropped = json.loads((tmp_path / "out" / "fuse.json").read_text())["dropped"]
    assert {d["reason"] for d in dropped if d["member"] == "next"} == {"no layer of next is taken"}
    seen(tmp_path / "out", tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_layers_of_an_adapter(family: Path, tmp_path: Path) -> None:
    """The adapter's change comes along where its layer is taken, and is left out with a reason where it is not."""
    peft: Any = get_peft_model(
        LlamaForCausalLM(CONFIG), LoraConfig(target_modules=["up_proj"], init_lora_weights=False)
    )
    peft.save_pretrained(family / "adapter")
    member = "a: {base: a, adapter: adapter}"
    whole = merge(family, tmp_path / "whole", "{method: linear, weights: 1}", member)
    out = merge(family, tmp_path / "out", "{method: passthrough, layers: [{a: [0, 2]}, {a: [1, 3]}]}", member)
    for number, layer in enumerate([0, 1, 1, 2]):
        assert same(layer_of(out, number), layer_of(whole, layer))
    up = "model.layers.2.mlp.up_proj.weight"
    assert not torch.equal(out[up], weights(family, "a")["model.layers.1.mlp.up_proj.weight"])
    dropped = json.loads((tmp_path / "out" / "fuse.json").read_text())["dropped"]
    told = {d["reason"] for d in dropped if "lora_" in d["tensor"]}
    assert told == {"layer 3 of a is not among the layers"}


REFUSED = {
    "{method: passthrough, layers: [{a: [0, 9]}]}":
        "r.yaml:2:43: language.layers.0.a: [0, 9] reaches beyond the 4 layers of a ([0, 4] ends with its last)",
    "{method: passthrough, layers: [{a: [2, 2]}]}":
        "r.yaml:2:43: language.layers.0.a: [2, 2] holds no layer: a range is its first layer and the one behind its last",
    "{method: passthrough, layers: [{a: [-1, 2]}]}":
        "r.yaml:2:43: language.layers.0.a: [-1, 2] holds no layer: a range is its first layer and the one behind its last",
    "{method: passthrough, layers: [{a: [0, 1.5]}]}":
        "r.yaml:2:43: language.layers.0.a: [0, 1.5] is not a range of layers (such as [0, 16])",
    "{method: passthrough, layers: [{a: 3}]}":
        "r.yaml:2:43: language.layers.0.a: 3 is not a range of layers (such as [0, 16])",
    "{method: passthrough, layers: [{c: [0, 2]}]}":
        "r.yaml:2:43: language.layers.0.c: is not a member (known: a, b, deep)",
    "{method: passthrough, layers: [{a: [0, 2], b: [0, 2]}]}":
        "r.yaml:2:42: language.layers.0: passthrough takes 1 member, not 2",
    "{method: slerp, t: 0.5, layers: [{a: [0, 2], b: [0, 2]}, {a: [2, 3]}]}":
        "r.yaml:2:68: language.layers.1: slerp takes 2 members, not 1",
    "{method: linear, weights: 1, layers: [{a: [0, 2], b: [1, 2]}]}":
        "r.yaml:2:49: language.layers.0: ranges that are merged have one length, and these are 2 layers of a, "
        "1 layer of b",
    "{method: linear, weights: {a: 1}, layers: [{a: [0, 2]}, {b: [1, 2]}]}":
        "r.yaml:2:68: language.layers.1.b: has no weight",
    "{method: linear, weights: {a: 1, b: 1}, layers: [{a: [0, 2]}]}":
        "r.yaml:2:44: language.weights.b: is in no entry of layers",
    "{method: task_arithmetic, weights: 1, layers: [{a: [0, 2], b: [1, 3]}]}":
        "r.yaml:2:58: language.layers.0: task_arithmetic takes the base's layers of the same numbers, and these ranges "
        "differ (use a method without a base, or one range)",
    "{method: task_arithmetic, weights: 1, layers: [{deep: [3, 6]}]}":
        "r.yaml:2:58: language.layers.0: reaches beyond the 4 layers of base",
    "{method: passthrough, layers: [{deep: [0, 6]}], embeddings: intersection}":
        "r.yaml:2:59: language.embeddings: 'intersection' is not a choice (known: a, b, base, deep, merge, union)",
    "{method: passthrough}":
        "r.yaml:2:12: language.method: passthrough takes 1 member, not 3",
    "{method: passthrough, layers: []}":
        "r.yaml:2:33: language.layers: has 0 entries, and a stack has from 1 to 1,024",
    "{method: passthrough, layers: [{}]}":
        "r.yaml:2:33: language.layers: entry 1 names no member (such as a: [0, 16])",
    "{method: passthrough, layers: [{a: [0, 3]}, {b: [0, 3]}, {deep: [0, 6]}]}":
        "r.yaml:2:33: language.layers: come to 12 layers, and fuse reads up to 9",
}  # fmt: skip


@pytest.mark.parametrize("language", REFUSED)
def test_refused(family: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse.layers.MAX_LAYERS", 10)
    (family / "r.yaml").write_text(f"{{base: base, members: {{a: a, b: b, deep: deep}},\nlanguage: {language}}}\n")
    ran = fuse_here("plan", family / "r.yaml")
    assert (ran.code, ran.err) == (2, f"fuse: {REFUSED[language]}\n")


STUCK = {
    "t5": ({}, "r.yaml:3:35: language.layers: a (t5) has an encoder and a decoder, and `layers` stacks one decoder"),
    "mllama_text_model": ({}, "r.yaml:3:35: language.layers: a (mllama) reads images in some of its layers, which "
                          "cannot stand elsewhere"),
    "gpt2": ({"scale_attn_by_inverse_layer_idx": True}, "a: config.json: scale_attn_by_inverse_layer_idx: a divides "
             "the attention of each layer by its number, so they stay in place"),
    "llama": ({"some_layers": [1, 2]}, "a: config.json: some_layers is [1, 2], and what it says of each layer cannot be "
              "stacked"),
    "qwen2": ({"layer_types": ["full_attention"]}, "a: config.json: layer_types tells of 1 layer, and there are 2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STUCK)
def test_what_cannot_be_stacked(tmp_path: Path, kind: str) -> None:
    changes, told = STUCK[kind]
    save_member(tiny_text.build(kind), tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps(config_of(tmp_path / "a") | changes))
    (tmp_path / "r.yaml").write_text(
        "members: {a: a}\nlanguage:\n  {method: passthrough, scale: 1, layers: [{a: [1, 2]}]}\n"
    )
    ran = fuse_here("plan", tmp_path / "r.yaml")
    assert (ran.code, ran.err.replace(f"{tmp_path}/", "")) == (2 if "yaml" in told else 3, f"fuse: {told}\n")


def test_layers_of_two_kinds_are_not_merged(tmp_path: Path) -> None:
    save_member(tiny_text.build("qwen2", **SETTINGS["qwen2"]), tmp_path / "a")
    (tmp_path / "r.yaml").write_text(
        "members: {a: a, b: a}\nlanguage: {method: slerp, t: 0.5, layers: [{a: [0, 1], b: [1, 2]}]}\n"
    )
    ran = fuse_here("plan", tmp_path / "r.yaml")
    told = (
        "layer 0 of a has layer_types full_attention, and layer 1 of b has sliding_attention (merge layers of one kind)"
    )
    assert (ran.code, ran.err) == (2, f"fuse: r.yaml:2:44: language.layers.0: {told}\n")


def test_what_hangs_on_the_hosts_layers(tmp_path: Path) -> None:
    """Image features behind the first layers, and grafts; both go with a stack in which every layer is in its place."""
    save_member(tiny_vlm.build("qwen3_vl"), tmp_path / "a")
    (tmp_path / "r.yaml").write_text(
        "members: {a: a, b: a}\nvision: [a]\nlanguage: {method: passthrough, layers: [{b: [0, 1]}, {a: [0, 2]}]}\n"
    )
    ran = fuse_here("plan", tmp_path / "r.yaml")
    told = "a (qwen3_vl) adds image features behind its first layers (DeepStack), so they stay in place"
    assert (ran.code, ran.err) == (2, f"fuse: r.yaml:3:33: language.layers: {told}\n")
    language = "{method: passthrough, layers: [{b: [0, 1]}, {a: [1, 2]}]}"
    merge(tmp_path, tmp_path / "in_place", language, "a: a, b: a", "vision: [a]")
    recipe_members.save("llama", tmp_path / "llama", 0)
    hidden = json.loads((tmp_path / "llama" / "config.json").read_text())
    official_adapters.peft_folder(tmp_path / "style", hidden)
    for stack, code in (("[{a: [0, 2]}, {a: [1, 2]}]", 2), ("[{a: [0, 1]}, {a: [1, 2]}]", 0)):
        (tmp_path / "r.yaml").write_text(
            f"members: {{a: llama}}\ngrafts: [{{from: style}}]\nlanguage: {{method: passthrough, layers: {stack}}}\n"
        )
        ran = fuse_here("plan", tmp_path / "r.yaml")
        told = (
            "grafts: grafts are attached to the layers that a has, and `layers` stacks others (merge the layers first, "
        )
        assert (ran.code, ran.err) == (code, f"fuse: r.yaml:2:1: {told}and graft onto that folder)\n" if code else "")


def test_the_plan_says_what_is_stacked(family: Path) -> None:
    (family / "r.yaml").write_text(
        "members: {a: a, b: b}\nlanguage: {method: linear, weights: 1, layers: [{a: [0, 2]}, {a: [1, 2], b: [3, 4]}]}\n"
    )
    ran = fuse_here("plan", family / "r.yaml")
    assert "  = layers: 3 stacked: a 0-1, a 1-1 + b 3-3\n" in ran.out
    assert "  a: model.* x18  layers 2-3 of a are not among the layers\n" in ran.out
    assert "  b: model.* x27  layers 0-2 of b are not among the layers\n" in ran.out
    every = fuse_here("plan", family / "r.yaml", "--all").out
    assert "  b: model.layers.1.mlp.up_proj.weight  layer 1 of b is not among the layers\n" in every
