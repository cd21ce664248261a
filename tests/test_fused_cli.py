"""VisionFuse through the command line: recipes with several encoders merged, loaded, asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from fuse.ask import load
from fuse.ensemble import ensemble_ask
from tests import tiny_processors, tiny_vlm
from tests.cli import Ran, fuse_here
from tests.test_fused_model import ASK, ROWS, SIZES, by_hand, features, greedy, own, picture

TYPES = list(tiny_processors.PROCESSORS)
LANGUAGE = ("language_model", "text_model")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny members of every family, as folders: llava-1, llava-2, llava_next-1 ..."""
    where = tmp_path_factory.mktemp("members")
    for model_type in TYPES:
        for seed in (1, 2):
            tiny_processors.save(own(model_type, seed)[0], where / f"{model_type}-{seed}")
    return where


def merge(tmp_path: Path, recipe: str) -> Ran:
    (tmp_path / "recipe.yaml").write_text(recipe)
    return fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out")


def opened(folder: Path) -> tuple[Any, Any]:
    """The folder as a user opens it, with nothing missing, unexpected or of another shape."""
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert {k: list(v) for k, v in report.items() if v} == {}
    return model.eval(), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("model_type", TYPES)
def test_one_branch_and_its_own_language_model_is_the_member(members: Path, tmp_path: Path, model_type: str) -> None:
    recipe = f"""
members: {{a: {members / model_type}-1}}
language: {{method: linear, weights: {{a: 1}}}}
vision: [a]
output: {{model: fuse}}
"""
    ran = merge(tmp_path, recipe)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    model, ours = opened(tmp_path / "out")
    member, processor = own(model_type, 1)
    assert type(model).__name__ == "FusedForConditionalGeneration"
    for size in SIZES:
        batch, text = by_hand(processor, model_type, picture(size))
        mine = ours(images=[picture(size)], text=[text])
        with torch.no_grad():
            got, want = model(**mine).logits, member(**batch).logits
        assert got.shape[1] == want.shape[1]
        assert (got[..., :ROWS] - want).abs().max() < 1e-5
    assert greedy(model, mine).tolist() == greedy(member, batch).tolist()


@pytest.mark.parametrize("model_type", TYPES)
def test_two_members_become_one_model_with_both_their_eyes(members: Path, tmp_path: Path, model_type: str) -> None:
    recipe = f"""
members: {{a: {members / model_type}-1, b: {members / model_type}-2}}
language: {{method: linear, weights: {{a: 0.5, b: 0.5}}}}
vision: [b, a]
"""
    ran = merge(tmp_path, recipe)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    model, ours = opened(tmp_path / "out")
    _, text = by_hand(own(model_type, 1)[1], model_type, picture(SIZES[0]))
    mine = ours(images=[picture(SIZES[0])], text=[text])
    with torch.no_grad():
        got = model.get_image_features(**mine)
        want = torch.cat([features(model_type, seed, picture(SIZES[0])) for seed in (2, 1)])
    assert got.shape == want.shape
    assert (got - want).abs().max() < 1e-6
    # every language tensor is the mean of both members', every tensor of the eyes a copy
    states = [own(model_type, seed)[0].state_dict() for seed in (1, 2)]
    seen = 0
    for key in states[0]:
        ours_name = language_name(key)
        if ours_name is None:
            for name, state in (("a", states[0]), ("b", states[1])):
                assert torch.equal(model.state_dict()[f"branches.{name}.{key.removeprefix('model.')}"], state[key])
        else:
            mean = sum(state[key].double() for state in states) / 2
            assert (model.state_dict()[ours_name][:ROWS].double() - mean).abs().max() < 1e-6
        seen += 1
    assert seen == len(states[0])
    out = fuse_here("ask", tmp_path / "out", ASK, "--image", jpeg(tmp_path), "--max-tokens", 4, "--json")
    assert out.code == 0, out.err
    assert json.loads(out.out)["question"] == ASK


def language_name(key: str) -> str | None:
    for part in LANGUAGE:
        if key.startswith(f"model.{part}."):
            return "language_model.model." + key.removeprefix(f"model.{part}.")
    return "language_model." + key if key.startswith("lm_head.") else None


def jpeg(tmp_path: Path) -> Path:
    picture((300, 200)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


LLAMAS = ("llava-1", "llava_next-1", "vipllava-2", "idefics3-1", "smolvlm-2")


def llamas(members: Path, count: int) -> str:
    return "members:\n" + "".join(f"  m{i}: {members / name}\n" for i, name in enumerate(LLAMAS[:count]))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_two_to_five_members_in_any_order(members: Path, tmp_path: Path, count: int) -> None:
    order = [f"m{i}" for i in reversed(range(count))]
    recipe = llamas(members, count) + "language: {method: linear, weights: 1}\n" + f"vision: [{', '.join(order)}]\n"
    recipe += "output: {host: m0}\nprompt: {template: m0}\n"
    ran = merge(tmp_path, recipe)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    model, ours = opened(tmp_path / "out")
    batch = ours(images=[picture((60, 40))], text=["<image> w5 w6"])
    with torch.no_grad():
        got = model.get_image_features(**batch)
        kinds = {f"m{i}": name.rsplit("-", 1) for i, name in enumerate(LLAMAS)}
        want = torch.cat([features(kinds[m][0], int(kinds[m][1]), picture((60, 40))) for m in order])
    assert (got - want).abs().max() < 1e-6
    assert greedy(model, batch, 4).shape == (1, 4)


def test_concatenation_only_keeps_one_language_model(members: Path, tmp_path: Path) -> None:
    recipe = llamas(members, 2) + "language: {method: linear, weights: {m0: 1}}\nvision: [m0, m1]\n"
    assert merge(tmp_path, recipe).code == 0
    model, _ = opened(tmp_path / "out")
    for key, value in own("llava", 1)[0].state_dict().items():
        if (name := language_name(key)) is not None:
            assert torch.equal(model.state_dict()[name][: len(value)], value)


def test_merging_only_is_the_native_class(members: Path, tmp_path: Path) -> None:
    recipe = llamas(members, 2) + "language: {method: linear, weights: 0.5}\nvision: [m0]\n"
    assert merge(tmp_path, recipe).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llava"


def test_equal_token_budget(members: Path, tmp_path: Path) -> None:
    """As many visual tokens from two branches as one member alone has: four."""
    recipe = llamas(members, 2) + (
        "language: {method: linear, weights: 0.5}\n"
        "vision: [{from: m0, max_tokens: 2}, {from: m1, max_tokens: 2, prune: similarity}]\n"
    )
    assert merge(tmp_path, recipe).code == 0
    model, ours = opened(tmp_path / "out")
    batch = ours(images=[picture((60, 40))], text=["<image> w5 w6"])
    assert [int((batch["input_ids"] == i).sum()) for i in model.config.placeholder_ids] == [2, 2]
    alone = own("llava", 1)[1](images=[picture((60, 40))], text=["<image> w5 w6"], return_tensors="pt")
    assert batch["input_ids"].shape == alone["input_ids"].shape


def test_a_text_model_as_host_gets_two_branches(members: Path, tmp_path: Path) -> None:
    config = {k: v for k, v in tiny_vlm.GROUPED.items() if k != "pad_token_id"}
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(tmp_path / "llm")
    tiny_processors.tokenizer().save_pretrained(tmp_path / "llm")
    recipe = llamas(members, 2) + (
        f"  llm: {tmp_path / 'llm'}\nlanguage: {{method: linear, weights: {{llm: 1}}}}\nvision: [m0, m1]\n"
        "output: {host: llm}\nprompt: {template: m0}\n"
    )
    ran = merge(tmp_path, recipe)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    model, ours = opened(tmp_path / "out")
    batch = ours(images=[picture((60, 40))], text=["<image> w5 w6"])
    assert sum(int((batch["input_ids"] == i).sum()) for i in model.config.placeholder_ids) == 4 + 14
    assert greedy(model, batch, 4).shape == (1, 4)


def test_the_same_recipe_gives_the_same_bytes(members: Path, tmp_path: Path) -> None:
    recipe = llamas(members, 3) + "language: {method: linear, weights: 1}\nvision: [m0, m1, m2]\n"
    found = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        assert merge(tmp_path / run, recipe).code == 0
        out = tmp_path / run / "out"
        found.append({p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()})
    assert found[0] == found[1]


def test_members_answer_together(members: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"members: {{a: {members}/llava-1, b: {members}/llava-2}}\n"
        "language: {method: linear, weights: {a: 1, b: 3}}\nvision: [a, b]\n"
    )
    asked = ("ask", tmp_path / "recipe.yaml", ASK, "--image", jpeg(tmp_path), "--max-tokens", 6)
    together = json.loads(fuse_here(*asked, "--ensemble", "--json").out)["answer"]
    folders = [load(members / name) for name in ("llava-1", "llava-2")]
    assert together == ensemble_ask(folders, ASK, (jpeg(tmp_path),), [0.25, 0.75], 6)
    alone = fuse_here(*asked)
    assert alone.err == (
        f"fuse: {tmp_path / 'recipe.yaml'}: is a recipe (merge it first, or --ensemble to ask its members together)\n"
    )


def test_attention_is_drawn_for_every_image(members: Path, tmp_path: Path) -> None:
    recipe = llamas(members, 2) + "language: {method: linear, weights: 0.5}\nvision: [m0, m1]\n"
    assert merge(tmp_path, recipe).code == 0
    image = jpeg(tmp_path)
    asked = ("ask", tmp_path / "out", ASK, "--image", image, "--image", image, "--max-tokens", 4)
    plain = fuse_here(*asked, "--json")
    ran = fuse_here(*asked, "--attention", tmp_path / "seen.png", "--json")
    told = json.loads(ran.out)
    assert told["attention"] == [str(tmp_path / "seen-1.png"), str(tmp_path / "seen-2.png")]
    assert all(Path(file).stat().st_size > 1000 for file in told["attention"])
    assert told["answer"] == json.loads(plain.out)["answer"]


REFUSED = [
    (("--attention", "x.png"), "fuse: --attention needs an image (--image FILE)\n"),
    (("--image", "{image}", "--attention", "x.jpg"), "fuse: x.jpg: the attention picture is a PNG (name it x.png)\n"),
    (
        ("--image", "{image}", "--attention", "no/x.png"),
        "fuse: no: there is no such folder for the attention picture\n",
    ),
    (("--image", "{image}", "--image", "no.png", "--attention", "x.png"), "fuse: no.png: there is no such file\n"),
    (("--image", "no.png"), "fuse: no.png: there is no such file\n"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED)
def test_refused_before_the_model_is_loaded(
    members: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr("fuse.ask.load", unreachable)
    recipe = llamas(members, 2) + "language: {method: linear, weights: 0.5}\nvision: [m0, m1]\n"
    assert merge(tmp_path, recipe).code == 0
    image = str(jpeg(tmp_path))
    ran = fuse_here("ask", tmp_path / "out", ASK, *(o.format(image=image) for o in options))
    assert (ran.code, ran.out, ran.err) == (2, "", told)


def unreachable(*_: Any, **__: Any) -> None:
    raise AssertionError("a model is loaded")


def test_images_of_an_ensemble_are_opened_before_its_models(
    members: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse.ask.load", unreachable)
    (tmp_path / "recipe.yaml").write_text(
        llamas(members, 2) + "language: {method: linear, weights: 0.5}\nvision: [m0]\n"
    )
    ran = fuse_here("ask", tmp_path / "recipe.yaml", ASK, "--image", "no.png", "--ensemble")
    assert (ran.code, ran.out, ran.err) == (2, "", "fuse: no.png: there is no such file\n")


def test_attention_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    ran = fuse_here("ask", tmp_path / "out", ASK, "--attention", "x.jpg")
    assert (ran.code, ran.err) == (2, f"fuse: {tmp_path / 'out'}: there is no such folder\n")


def test_help_says_what_is_drawn_and_what_auto_does() -> None:
    told = " ".join(fuse_here("ask", "--help").out.split())
    assert "Draw where the answer looked, as a PNG (one picture for each image; fused folders only)." in told
    assert "cpu, cuda, cuda:1, mps, or auto, which spreads the model over the GPUs and the CPU." in told


def test_attention_of_a_native_folder_is_refused(
    members: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse.ask.load", unreachable)
    ran = fuse_here("ask", members / "llava-1", ASK, "--image", jpeg(tmp_path), "--attention", tmp_path / "x.png")
    assert ran.err == (
        f"fuse: {members / 'llava-1'}: --attention shows branches, and this folder is not a fused one "
        "(`output: {model: fuse}` in a recipe makes one, of a single encoder too)\n"
    )


def test_written_bytes_are_the_members_own(members: Path, tmp_path: Path) -> None:
    recipe = llamas(members, 2) + "language: {method: linear, weights: {m1: 1}}\nvision: [m1, m0]\n"
    assert merge(tmp_path, recipe).code == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    stored = load_file(members / "llava_next-1" / "model.safetensors")
    assert torch.equal(written["branches.m1.image_newline"], stored["image_newline"])
    assert sum(t.numel() for t in written.values()) > 0


def test_a_fused_folder_is_no_member(members: Path, tmp_path: Path) -> None:
    recipe = llamas(members, 2) + "language: {method: linear, weights: 0.5}\nvision: [m0, m1]\n"
    assert merge(tmp_path, recipe).code == 0
    (tmp_path / "again.yaml").write_text("members: {a: out}\nlanguage: {method: linear, weights: 1}\nvision: [a]\n")
    ran = fuse_here("plan", tmp_path / "again.yaml")
    told = "is a fused folder, which cannot be a member (name the members that its fuse.json lists)"
    assert (ran.code, ran.err) == (3, f"fuse: {tmp_path / 'out'}: {told}\n")


def test_the_attention_picture_is_not_written_over_an_image(members: Path, tmp_path: Path) -> None:
    recipe = llamas(members, 2) + "language: {method: linear, weights: 0.5}\nvision: [m0, m1]\n"
    assert merge(tmp_path, recipe).code == 0
    image = jpeg(tmp_path)
    before = image.read_bytes()
    ran = fuse_here("ask", tmp_path / "out", ASK, "--image", image, "--attention", image)
    told = f"fuse: {image}: the attention picture would be written over an image (name another)\n"
    assert (ran.code, ran.err, image.read_bytes()) == (2, told, before)


def test_a_native_folder_may_not_name_what_a_library_would_fetch(members: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(members / "llava-1", tmp_path / "evil")
    config = json.loads((tmp_path / "evil" / "config.json").read_text())
    config["vision_config"] = {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/model"}
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    ran = fuse_here("ask", tmp_path / "evil", ASK)
    assert ran.code == 3
    assert "hf-hub:evil/model" in ran.err
    assert "Traceback" not in ran.err
