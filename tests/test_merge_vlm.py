"""Multimodal merges through the command line: nothing is lost, the output loads whole and computes what it should."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlamaForCausalLM, PreTrainedModel

from tests import layouts, tiny_vlm
from tests.cli import fuse_here
from tests.members import TEMPLATE, perturbed, save_member, save_tokenizer, words

ADDED = {"<image>": 90}
TOKENS = words(90)


def load_whole(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=dtype)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[what], (what, report[what])
    return model.eval()


def run(tmp: Path, recipe: str, name: str = "out") -> Path:
    (tmp / f"{name}.yaml").write_text(recipe)
    ran = fuse_here("merge", tmp / f"{name}.yaml", tmp / name)
    assert (ran.code, ran.err) == (0, ""), ran
    return tmp / name


def language_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The language model's weights in memory, by their names in a text-only model, in float64."""
    found = {f"model.{k}": v.double() for k, v in model.model.language_model.state_dict().items()}
    return found | {"lm_head.weight": model.lm_head.weight.detach().double()}


def with_language(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """The model in float64 with another language model."""
    model = copy.deepcopy(model).double()
    state = {k.removeprefix("model."): v for k, v in weights.items() if k != "lm_head.weight"}
    model.model.language_model.load_state_dict(state)
    model.lm_head.weight.data = weights["lm_head.weight"]
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits on an image and a few words, in float64."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(1, 3, 28, 28, generator=generator, dtype=torch.float64)
    ids = torch.tensor([[1, *[90] * 4, 5, 6, 7]])
    with torch.no_grad():
        return model.double()(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture(scope="module")
def llavas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LLaVAs of one base, as current transformers saves them, and the base."""
    root = tmp_path_factory.mktemp("llavas")
    first = tiny_vlm.build("llava", 1)
    save_member(first, root / "a", TOKENS, ADDED)
    save_member(perturbed(first, 2), root / "b", TOKENS, ADDED)
    language = LlamaForCausalLM(first.config.text_config)
    language.load_state_dict({k: v.float() for k, v in language_of(first).items()})
    save_member(perturbed(language, 3), root / "base", TOKENS, ADDED)
    save_member(perturbed(language, 4), root / "math", TOKENS, ADDED)
    return root


def test_two_llavas_linear(llavas: Path, tmp_path: Path) -> None:
    out = run(tmp_path, f"members: {{a: {llavas}/a, b: {llavas}/b}}\n"
              "language: {method: linear, weights: {a: 0.7, b: 0.3}}\nvision: [a]\n")  # fmt: skip
    stored, parent = (load_file(f / "model.safetensors") for f in (out, llavas / "a"))
    assert set(stored) == set(parent) and len(stored) == 64
    first, second = (load_whole(llavas / n) for n in "ab")
    one, two = language_of(first), language_of(second)
    wanted = with_language(first, {k: 0.7 * one[k] + 0.3 * two[k] for k in one})
    torch.testing.assert_close(logits(load_whole(out)), logits(wanted), rtol=0, atol=1e-5)
    assert (logits(wanted) - logits(first.double())).abs().max() > 1e-2  # the merge did something


@pytest.mark.filterwarnings("ignore")
def test_mergekit_loses_the_language_model_of_the_same_pair(llavas: Path, tmp_path: Path) -> None:
    """Why fuse exists, kept as a test: mergekit 0.1.5 exits without an error and drops every language tensor.

    If this fails, mergekit has mended it: say so in README.md.
    """
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    models = [{"model": str(llavas / n), "parameters": {"weight": 0.5}} for n in "ab"]
    config = MergeConfiguration.model_validate({"merge_method": "linear", "models": models, "dtype": "float32"})
    run_merge(config, str(tmp_path / "out"), MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert len(stored) == 43 and not any("language_model" in k or "lm_head" in k for k in stored)


def test_all_parts(llavas: Path, tmp_path: Path) -> None:
    out = run(tmp_path, f"members: {{a: {llavas}/a, b: {llavas}/b}}\nlanguage: {{method: linear, weights: 0.5}}\n"
              "vision: [{from: a, merge: {method: slerp, t: [0, 1]}}]\n")  # fmt: skip
    stored, a, b = (load_file(f / "model.safetensors") for f in (out, llavas / "a", llavas / "b"))
    first, last = (f"vision_tower.encoder.layers.{i}.mlp.fc1.weight" for i in (0, 1))
    assert torch.equal(stored[first], a[first]) and torch.equal(stored[last], b[last])
    name = "language_model.model.norm.weight"
    torch.testing.assert_close(stored[name], (a[name] + b[name]) / 2)
    load_whole(out)


def test_vlm_and_llm_equals_merging_by_hand(llavas: Path, tmp_path: Path) -> None:
    """The math-LLM case: a text-only expert of the same base goes into a VLM, whose eyes stay."""
    out = run(tmp_path, f"base: {llavas}/base\nmembers: {{vlm: {llavas}/a, math: {llavas}/math}}\n"
              "language: {method: task_arithmetic, weights: {vlm: 1, math: 0.4}}\nvision: [vlm]\n")  # fmt: skip
    vlm = load_whole(llavas / "a")
    base, math = ({k: v.double() for k, v in load_file(llavas / n / "model.safetensors").items()}
                  for n in ("base", "math"))  # fmt: skip
    mine = language_of(vlm)
    wanted = with_language(vlm, {k: base[k] + (mine[k] - base[k]) + 0.4 * (math[k] - base[k]) for k in mine})
    torch.testing.assert_close(logits(load_whole(out)), logits(wanted), rtol=0, atol=1e-5)
    stored, parent = (load_file(f / "model.safetensors") for f in (out, llavas / "a"))
    assert all(torch.equal(stored[k], parent[k]) for k in parent if "language_model" not in k)


def test_vocabularies_that_differ_are_matched_by_token(llavas: Path, tmp_path: Path) -> None:
    """llava-hf's case: the VLM has added tokens and padded rows, the LLM has neither."""
    vlm = tiny_vlm.build("llava", 1)
    language = LlamaForCausalLM(vlm.config.text_config)
    language.load_state_dict({k: v.float() for k, v in language_of(vlm).items()})
    language.resize_token_embeddings(90)
    language = perturbed(language, 6)
    save_member(language, tmp_path / "llm", TOKENS)
    out = run(tmp_path, f"members: {{vlm: {llavas}/a, llm: llm}}\nlanguage: {{method: linear, weights: 0.5}}\n"
              "vision: [vlm]\n")  # fmt: skip
    stored, a, llm = (load_file(f / "model.safetensors") for f in (out, llavas / "a", tmp_path / "llm"))
    for name, theirs in (("language_model.model.embed_tokens.weight", "model.embed_tokens.weight"),
                         ("language_model.lm_head.weight", "lm_head.weight")):  # fmt: skip
        torch.testing.assert_close(stored[name][:90], (a[name][:90] + llm[theirs]) / 2)
        assert torch.equal(stored[name][90:], a[name][90:])
    plan = fuse_here("plan", tmp_path / "out.yaml").out
    assert "(90 of 96 rows matched by token, the others are vlm's)" in plan


def test_added_tokens_at_other_ids_follow_their_token(llavas: Path, tmp_path: Path) -> None:
    moved = perturbed(tiny_vlm.build("llava", 1), 8)
    save_member(moved, tmp_path / "moved", TOKENS, {"<pad>": 90, "<image>": 91})
    save_member(tiny_vlm.build("llava", 1), tmp_path / "host", TOKENS, {"<image>": 90, "<pad>": 91, "<mine>": 92})
    out = run(
        tmp_path, "members: {host: host, moved: moved}\nlanguage: {method: linear, weights: 0.5}\nvision: [host]\n"
    )
    name = "language_model.model.embed_tokens.weight"
    stored, host, other = (
        load_file(f / "model.safetensors")[name] for f in (out, tmp_path / "host", tmp_path / "moved")
    )
    torch.testing.assert_close(stored[90], (host[90] + other[91]) / 2)
    torch.testing.assert_close(stored[91], (host[91] + other[90]) / 2)
    assert torch.equal(stored[92:], host[92:])


@pytest.mark.parametrize("choice", ["base", "b", "a"])
def test_rows_of_one_member(llavas: Path, tmp_path: Path, choice: str) -> None:
    out = run(tmp_path, f"base: {llavas}/base\nmembers: {{a: {llavas}/a, b: {llavas}/b}}\n"
              f"language: {{method: task_arithmetic, weights: 0.5, embeddings: {choice}}}\nvision: [a]\n")  # fmt: skip
    name = "language_model.model.embed_tokens.weight"
    given = load_file(llavas / choice / "model.safetensors")
    theirs = given.get(name, given.get("model.embed_tokens.weight"))
    stored = load_file(out / "model.safetensors")[name]
    assert torch.equal(stored[:91], theirs[:91])


@pytest.mark.parametrize("host", "ABCD")
def test_layouts_mix_freely(llavas: Path, tmp_path: Path, host: str) -> None:
    """One model in four layouts: merged with itself and a fine-tune, whatever the layouts, the values are the same."""
    for layout in "ABCD":
        layouts.to_layout(llavas / "b", tmp_path / f"b{layout}", layout)
    layouts.to_layout(llavas / "a", tmp_path / f"a{host}", host)
    guests = ", ".join(f"b{n}: b{n}" for n in "ABCD")
    out = run(
        tmp_path, f"members: {{host: a{host}, {guests}}}\nlanguage: {{method: linear, weights: 1}}\nvision: [host]\n"
    )
    a, b = (load_file(llavas / n / "model.safetensors") for n in "ab")
    stored = load_file(out / "model.safetensors")
    assert set(stored) == set(load_file(tmp_path / f"a{host}" / "model.safetensors"))
    if host != "A":  # transformers has no class for A; the values are compared below
        model = load_whole(out)
        assert torch.isfinite(logits(model)).all()
    norm = next(v for k, v in stored.items() if k.endswith("layers.1.mlp.up_proj.weight"))
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(norm, (a[name] + 4 * b[name]) / 5)


@pytest.mark.parametrize("host", ["qwen", "onevision"])
def test_two_classes_on_one_base(tmp_path: Path, host: str) -> None:
    """Qwen2-VL and LLaVA-OneVision, either way round; vocabularies matched by token."""
    qwen, onevision = tiny_vlm.build("qwen2_vl", 1), tiny_vlm.build("llava_onevision", 2)
    onevision.config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    onevision.config.text_config.rms_norm_eps = 1e-5  # Qwen2-VL's default
    special = {"<image>": 90, "<video>": 91, "<|vision_start|>": 92, "<|vision_end|>": 93}
    save_member(qwen, tmp_path / "qwen", TOKENS, special)
    save_member(onevision, tmp_path / "onevision", TOKENS, {"<image>": 90, "<video>": 91})
    out = run(tmp_path, "members: {qwen: qwen, onevision: onevision}\n"
              f"language: {{method: linear, weights: 0.5}}\nvision: [{host}]\n")  # fmt: skip
    merged, one, two = (load_whole(f) for f in (out, tmp_path / "qwen", tmp_path / "onevision"))
    mine, a, b = (language_of(m) for m in (merged, one, two))
    assert set(mine) == set(a) == set(b)
    for name, tensor in mine.items():
        wanted = (a[name] + b[name]) / 2
        if "embed" in name or "head" in name:
            wanted[92:] = (a if host == "qwen" else b)[name][92:]
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-7)
    theirs = one if host == "qwen" else two
    for name, tensor in theirs.state_dict().items():
        if "language_model" not in name and "lm_head" not in name:
            assert torch.equal(merged.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", tiny_vlm.VLM_TYPES)
def test_every_family_merges(tmp_path: Path, kind: str) -> None:
    """Two fine-tunes of each multimodal class: every tensor arrives and the output loads with nothing missing."""
    model = tiny_vlm.build(kind, 1)
    rows = model.get_input_embeddings().weight.shape[0]
    save_member(model, tmp_path / "a", words(rows))
    save_member(perturbed(model, 2), tmp_path / "b", words(rows))
    out = run(tmp_path, "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\n"
              "vision: [{from: a, merge: {method: linear, weights: {a: 0.25, b: 0.75}}}]\n")  # fmt: skip
    merged, one, two = (load_whole(f) for f in (out, tmp_path / "a", tmp_path / "b"))
    a, b = one.state_dict(), two.state_dict()
    halves = quarters = 0
    for name, tensor in merged.state_dict().items():
        if torch.equal(a[name], b[name]):
            continue
        half = torch.allclose(tensor, (a[name] + b[name]) / 2, rtol=0, atol=1e-6)
        quarter = torch.allclose(tensor, a[name] / 4 + b[name] * 3 / 4, rtol=0, atol=1e-6)
        assert half or quarter, name
        halves, quarters = halves + half, quarters + quarter
    assert halves and quarters


def test_folder_is_complete(llavas: Path, tmp_path: Path) -> None:
    (llavas / "a" / "evil.py").write_text("raise SystemExit")
    config = json.loads((llavas / "a" / "config.json").read_text())
    (llavas / "a" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Evil"}}))
    out = run(
        tmp_path, f"members: {{a: {llavas}/a, b: {llavas}/b}}\nlanguage: {{method: linear, weights: 0.5}}\nvision: [a]"
    )
    (llavas / "a" / "evil.py").unlink()
    (llavas / "a" / "config.json").write_text(json.dumps(config))
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "config.json", "fuse.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert "auto_map" not in (out / "config.json").read_text()
    provenance = json.loads((out / "fuse.json").read_text())
    assert len(provenance["dropped"]) == 43
    assert {d["reason"] for d in provenance["dropped"]} == {"vision keeps a's"}


def test_headline_pair_keeps_the_layout_of_its_host(tmp_path: Path) -> None:
    """MGM and SliME: one base, original-LLaVA layouts; transformers has no class, so the values are what is checked."""
    layouts.build_original("mgm", tmp_path / "mgm")
    layouts.build_original("slime", tmp_path / "slime")
    for name in ("mgm", "slime"):
        rows = load_file(tmp_path / name / "model.safetensors")["model.embed_tokens.weight"].shape[0]
        save_tokenizer(tmp_path / name, words(rows))
    out = run(tmp_path, "members: {mgm: mgm, slime: slime}\nlanguage: {method: linear, weights: {mgm: 0.25, slime: 0.75}}\n"
              "vision: [mgm]\n")  # fmt: skip
    stored, mgm, slime = (load_file(f / "model.safetensors") for f in (out, tmp_path / "mgm", tmp_path / "slime"))
    assert set(stored) == set(mgm)
    for name, tensor in stored.items():
        merged = name in slime and ("layers" in name or name.split(".")[1] in {"norm", "embed_tokens", "weight"})
        merged = merged and "vision_tower" not in name and "sampler" not in name
        wanted = mgm[name] * 0.25 + slime[name] * 0.75 if merged else mgm[name]
        torch.testing.assert_close(tensor, wanted, msg=name)
    plan = fuse_here("plan", tmp_path / "out.yaml").out
    assert "slime: model.sampler.* " in plan or "slime: model.*" in plan
    assert "note: the output has the layout of mgm (mgm)" in plan
    ran = fuse_here("ask", out, "w5")
    told = f"fuse: {out}: has the original layout of mgm, which only the code it came from loads (a recipe with `output: {{model: fuse}}` "
    told += "makes a folder of it that runs)\n"
    assert (ran.code, ran.err) == (3, told)


def test_an_internvl_of_its_authors_is_to_be_converted(tmp_path: Path) -> None:
    layouts.build_original("internvl", tmp_path / "chat")
    ran = fuse_here("ask", tmp_path / "chat", "w5")
    told = (
        f"fuse: {tmp_path / 'chat'}: has the original layout of internvl_chat, which only the code it came from loads "
    )
    assert (ran.code, ran.err) == (3, f"{told}(convert it to transformers' own layout first)\n")


def test_images_for_a_text_model_are_refused_before_it_is_loaded(tmp_path: Path) -> None:
    from fuse.ask import load
    from fuse.errors import RecipeError

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # a folder that would not load
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, images=(tmp_path / "photo.png",))
    assert str(caught.value) == f"{tmp_path}: no image processor in this folder; ask it without --image"


def test_answers_about_an_image_with_another_template(llavas: Path, tmp_path: Path) -> None:
    """The processor travels, the chat template comes from the member that the recipe names, and the folder answers."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    for name in "ab":
        save_member(load_whole(llavas / name), tmp_path / name, TOKENS, ADDED, template=f"{TEMPLATE}{{# {name} #}}")
        LlavaProcessor(
            CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
            PreTrainedTokenizerFast.from_pretrained(tmp_path / name), patch_size=14,
            vision_feature_select_strategy="default", num_additional_image_tokens=1,
        ).save_pretrained(tmp_path / name)  # fmt: skip
    out = run(
        tmp_path,
        "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\nvision: [a]\nprompt: {template: b}\n",
    )
    assert (out / "chat_template.jinja").read_text() == f"{TEMPLATE}{{# b #}}"
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    ran = fuse_here("ask", out, "w5 w6", "--image", tmp_path / "red.png", "--max-tokens", 4, "--json")
    assert ran.code == 0, ran.err
    assert len(json.loads(ran.out)["answer"].split()) <= 4
    (tmp_path / "not.png").write_text("no image")
    ran = fuse_here("ask", out, "w5", "--image", tmp_path / "not.png")
    told = "is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"
    assert (ran.code, ran.err) == (2, f"fuse: {tmp_path}/not.png: {told}\n")


def test_eyes_can_be_left_out(llavas: Path, tmp_path: Path) -> None:
    """`vision: []` and a text-only host: the VLM's language model goes into an LLM."""
    out = run(tmp_path, f"members: {{vlm: {llavas}/a, math: {llavas}/math}}\nlanguage: {{method: linear, weights: 0.5}}\n"
              "vision: []\noutput: {host: math}\n")  # fmt: skip
    stored, a, math = (load_file(f / "model.safetensors") for f in (out, llavas / "a", llavas / "math"))
    assert set(stored) == set(math)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(stored[name], (a[f"language_model.{name}"] + math[name]) / 2)


VISION = {
    "": "recipe.yaml: a and b can see: say whose encoder and projector the output keeps "
        "(vision: [a, b], vision: [a], or vision: [] and a text-only output.host)",
    "vision: []\n": "recipe.yaml:3:1: vision: is empty, but a can see (name a text-only output.host)",
    "vision: [a, b, a]\n": "recipe.yaml:3:16: vision.2: a is in vision twice",
    "vision: [a, b]\noutput: {model: native}\n":
        "recipe.yaml:4:10: output.model: native has no place for 2 branches (leave it out, or write fuse)",
    "vision: []\noutput: {model: fuse}\n": "recipe.yaml:4:10: output.model: fuse needs a branch in vision, or a graft",
    "vision: [{name: a, timm: x, weights: w, projector: p}]\n":
        "recipe.yaml:3:11: vision.0.name: 'a' is the name of a member",
    "vision: [a]\noutput: {host: b}\n":
        "recipe.yaml:4:10: output.host: b is not the member whose encoder is kept (a) "
        "(`model: fuse` under output keeps one member's encoder on another's language model)",
}  # fmt: skip


@pytest.mark.parametrize("vision", VISION)
def test_refuses_unclear_eyes(llavas: Path, tmp_path: Path, vision: str) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"members: {{a: {llavas}/a, b: {llavas}/b}}\nlanguage: {{method: linear, weights: 0.5}}\n{vision}"
    )
    ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (2, f"fuse: {VISION[vision]}\n")


@pytest.mark.parametrize("room", ["padding", "behind"])
def test_union_adds_the_tokens_of_guests(llavas: Path, tmp_path: Path, room: str) -> None:
    """A guest's added tokens get rows of the host: padding rows where there are any, else rows behind the table."""
    from transformers import AutoTokenizer

    host = {"<image>": 90} if room == "padding" else {"<image>": 90, **{f"<own{i}>": i for i in range(91, 96)}}
    save_member(load_whole(llavas / "a"), tmp_path / "host", TOKENS, host)
    save_member(load_whole(llavas / "b"), tmp_path / "guest", TOKENS, {"<tile>": 90, "<row>": 91, "<image>": 92})
    out = run(tmp_path, "members: {host: host, guest: guest}\n"
              "language: {method: linear, weights: 0.5, embeddings: union}\nvision: [host]\n")  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(out)
    first = 91 if room == "padding" else 96
    assert tokenizer.convert_tokens_to_ids(["<image>", "<tile>", "<row>"]) == [90, first, first + 1]
    assert tokenizer("w5<tile> w6", add_special_tokens=False).input_ids == [5, first, 6]
    model = load_whole(out)
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("host", "guest"))
    for tensor, name in ((model.model.language_model.embed_tokens.weight, "language_model.model.embed_tokens.weight"),
                         (model.lm_head.weight, "language_model.lm_head.weight")):  # fmt: skip
        assert tensor.shape[0] == (96 if room == "padding" else 98)
        assert torch.equal(tensor[first : first + 2], b[name][90:92])
        torch.testing.assert_close(tensor[90], (a[name][90] + b[name][92]) / 2)
        torch.testing.assert_close(tensor[:90], (a[name][:90] + b[name][:90]) / 2)
        assert torch.equal(tensor[93:96], a[name][93:96])
    assert torch.isfinite(logits(model)).all()
    plan = fuse_here("plan", tmp_path / "out.yaml")
    assert "rows of 2 new tokens" in plan.out


def test_eyes_that_differ_are_not_merged(llavas: Path, tmp_path: Path) -> None:
    recipe = f"members: {{a: {llavas}/a, b: b}}\nlanguage: {{method: linear, weights: 0.5}}\n"
    recipe += "vision: [{from: a, merge: {method: linear, weights: 0.5}}]\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    for changes, said in (
        ({"hidden_act": "gelu"}, "vision_config.hidden_act is quick_gelu in a and gelu in b"),
        ({"num_hidden_layers": 3}, "vision_config.num_hidden_layers is 2 in a and 3 in b"),
    ):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        inner = {**tiny_vlm.CLIP, **changes}
        save_member(tiny_vlm.build_from("llava", {"vision_config": inner}), tmp_path / "b", TOKENS, ADDED)
        ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")
        told = f"fuse: {tmp_path}/b/config.json: the encoders of a and b cannot be merged: {said}\n"
        assert (ran.code, ran.err) == (3, told)


def test_union_leaves_the_hosts_special_rows_alone(llavas: Path, tmp_path: Path) -> None:
    """The host's config gives row 90 a meaning although its tokenizer has no token there."""
    save_member(load_whole(llavas / "a"), tmp_path / "host", TOKENS)
    save_member(load_whole(llavas / "b"), tmp_path / "guest", TOKENS, {"<tile>": 90})
    out = run(tmp_path, "members: {host: host, guest: guest}\n"
              "language: {method: linear, weights: 0.5, embeddings: union}\nvision: [host]\n")  # fmt: skip
    assert {"<tile>": 91}.items() <= {
        t["content"]: t["id"] for t in json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    }.items()


def test_second_tokenizer_of_instructblip_travels(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        save_member(tiny_vlm.build("instructblip", seed), tmp_path / name, words(96))
        (tmp_path / name / "qformer_tokenizer").mkdir()
        save_tokenizer(tmp_path / name / "qformer_tokenizer", words(40))
        (tmp_path / name / "qformer_tokenizer" / "evil.py").write_text("raise SystemExit")
    out = run(tmp_path, "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\nvision: [a]\n")
    names = {p.name for p in (out / "qformer_tokenizer").iterdir()}
    assert "tokenizer.json" in names and "evil.py" not in names


def test_template_for_a_host_that_sees_has_a_place_for_images(llavas: Path, tmp_path: Path) -> None:
    save_member(load_whole(llavas / "a"), tmp_path / "a", TOKENS, ADDED, template=TEMPLATE)
    language = LlamaForCausalLM(load_whole(llavas / "a").config.text_config)
    save_member(language, tmp_path / "llm", TOKENS, ADDED, template="{{ messages[0].content }}")
    (tmp_path / "recipe.yaml").write_text(
        "members: {a: a, llm: llm}\nlanguage: {method: linear, weights: 0.5}\nvision: [a]\nprompt: {template: llm}\n"
    )
    said = "fuse: recipe.yaml:4:10: prompt.template: llm's template has no place for images, and a can see\n"
    ran = fuse_here("plan", tmp_path / "recipe.yaml")
    assert (ran.code, ran.err) == (2, said)


CONFIGS = {
    "vision_config": (None, "config.json: vision_config is missing"),
    "text_config": (None, "config.json: text_config is missing"),
    "image_token_index": (96, "config.json: image_token_index is 96, and the embedding has 96 rows"),
    "model_type": ("../x", "config.json: model_type '../x' is not a plain word"),
}


@pytest.mark.parametrize("key", CONFIGS)
def test_configs_that_do_not_describe_the_folder(llavas: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(llavas / "b", tmp_path / "b")
    value, said = CONFIGS[key]
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps(config | {key: value}))
    (tmp_path / "recipe.yaml").write_text(
        f"members: {{a: {llavas}/a, b: b}}\nlanguage: {{method: linear, weights: 0.5}}\nvision: [a]\n"
    )
    ran = fuse_here("plan", tmp_path / "recipe.yaml")
    assert (ran.code, ran.err) == (3, f"fuse: {tmp_path}/b: {said}\n")
