"""The headline pair in the layout of its authors' code, from recipe to answer: MGM and SliME, towers from elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import fuse  # noqa: F401 - makes the Auto classes know the folder
from fuse.branches.mgm import MgmBranch
from fuse.branches.slime import SlimeBranch
from tests import layouts, tiny_processors
from tests.cli import fuse_here
from tests.original_branches import difference, picture, seeded, slime
from tests.test_branch_mgm import mgm
from tests.test_branch_towers import OFFICIAL, clip_folder, convnext_folder, original, outside

RECIPE = """
members:
  mgm: {path: mgm, towers: {vision_tower: clip, vision_tower_aux: convnext}}
  slime: slime
language: {method: linear, weights: {mgm: 0.5, slime: 0.5}}
vision: [mgm, slime]
"""
GATED = {
    "multi_modal_projector.linear_1.": "model.mm_projector.projection.0.",
    "multi_modal_projector.linear_2.": "model.mm_projector.projection.2.",
    "multi_modal_projector.": "model.mm_projector.",
    "sampler.": "model.sampler.",
}
PROMPTS = ("w5 <image> w6 w7", "<image> w9 w10 w11 w12 w13")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both members, their towers, a recipe, and `out`."""
    root = tmp_path_factory.mktemp("pair")
    clip_folder(root / "clip")
    convnext_folder(root / "convnext")
    settings = {"hidden_size": 32}
    chooser = slime(**settings, mm_resampler_type="qformer", mm_resampler_topp=0.6, mm_projector_type="gated")
    original(root / "mgm", seeded(MgmBranch(mgm(**settings)), 1), mgm(**settings), outside)
    original(
        root / "slime", seeded(SlimeBranch(chooser), 2), chooser, outside, names={**OFFICIAL, **GATED},
        model_type="llava_llama", mm_vision_tower="clip",
    )  # fmt: skip
    for seed, name in enumerate(("mgm", "slime")):
        generator = torch.Generator().manual_seed(seed)
        stored = load_file(root / name / "model.safetensors")
        words = {k: torch.randn(s, generator=generator) * 0.3 for k, s in layouts.llama_shapes().items()}
        layouts.write_tensors({**stored, **words}, root / name)
        tiny_processors.tokenizer("llava").save_pretrained(root / name)
    (root / "recipe.yaml").write_text(RECIPE)
    done = fuse_here("merge", root / "recipe.yaml", root / "out")
    assert done.code == 0, done.err
    return root


@pytest.fixture(scope="module")
def fused(pair: Path) -> tuple[Any, Any]:
    model, report = AutoModelForImageTextToText.from_pretrained(pair / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval(), AutoProcessor.from_pretrained(pair / "out")


def prompt(processor: Any, *numbers: int) -> Any:
    images = [[picture(60 + 40 * n, 90, n)] for n in numbers]
    return processor(images=images, text=[PROMPTS[n] for n in numbers], return_tensors="pt")


def test_every_branch_sees_what_its_member_sees(pair: Path, fused: tuple[Any, Any]) -> None:
    """The fused tokens of an image are MGM's, and behind them those that SliME chooses by the words."""
    model, processor = fused
    inputs = prompt(processor, 0)
    with torch.no_grad():
        tokens = model.get_image_features(**inputs)
        settings = {name: model.config.branches[i]["config"] for i, name in enumerate(("mgm", "slime"))}
        own = {"mgm": MgmBranch(settings["mgm"]).eval(), "slime": SlimeBranch(settings["slime"]).eval()}
        stored = load_file(pair / "out" / "model.safetensors")
        for name, branch in own.items():
            begin = f"branches.{name}."
            branch.load_state_dict({k.removeprefix(begin): t for k, t in stored.items() if k.startswith(begin)})
        ids = processor.tokenizer(PROMPTS[0].replace("<image> ", ""), return_tensors="pt")["input_ids"][0]
        table = torch.nn.Embedding.from_pretrained(stored["language_model.model.embed_tokens.weight"])
        wanted = []
        for name in own:
            given = {k.split(".")[2]: v for k, v in inputs.items() if k.startswith(f"branches.{name}.")}
            wanted.append(own[name](given, text=[ids], embed=table, attention=False)[0].tokens)
    assert len(wanted[0]) == 16 and 17 < len(wanted[1]) < 17 + 4 * 2
    assert difference(tokens, torch.cat(wanted)) < 1e-5


def test_unused_places_leave_no_trace(fused: tuple[Any, Any]) -> None:
    """The answer is that of the language model to a prompt without the places that SliME did not use."""
    model, processor = fused
    inputs = prompt(processor, 1)
    with torch.no_grad():
        seen = model.read(**inputs)
        used = seen.attention_mask[0].bool()
        assert not used.all()
        wanted = model.language_model(inputs_embeds=seen.embeds[:, used]).logits
        assert difference(model(**inputs).logits[:, used], wanted) < 1e-5


def test_batches_and_caches_change_nothing(fused: tuple[Any, Any]) -> None:
    model, processor = fused
    settings = {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.1}
    both = prompt(processor, 0, 1)
    with torch.no_grad():
        logits = model(**both).logits[:, -1]
        alone = torch.cat([model(**prompt(processor, n)).logits[:, -1] for n in (0, 1)])
        assert difference(logits, alone) < 1e-4
        length = both["input_ids"].shape[1]
        answers = model.generate(**both, **settings)[:, length:]
        assert torch.equal(answers, model.generate(**both, use_cache=False, **settings)[:, length:])
        for n in (0, 1):
            one = prompt(processor, n)
            found = model.generate(**one, **settings)[:, one["input_ids"].shape[1] :]
            assert torch.equal(found[0], answers[n])


def test_a_question_changes_what_slime_gives_and_not_what_mgm_gives(fused: tuple[Any, Any]) -> None:
    model, processor = fused
    image = [[picture(100, 90)]]
    found = []
    for words in ("w5 w6 <image>", "w20 w21 w22 w23 w24 w25 <image>"):
        inputs = processor(images=image, text=[words], return_tensors="pt")
        with torch.no_grad():
            found.append(model.read(**inputs).seen)
    assert torch.equal(found[0]["mgm"][0].tokens, found[1]["mgm"][0].tokens)
    one, other = (seen["slime"][0].tokens for seen in found)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_the_towers_own_preprocessing_travels(pair: Path) -> None:
    own = '{"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}'
    (pair / "clip" / "preprocessor_config.json").write_text(own)
    done = fuse_here("merge", pair / "recipe.yaml", pair / "again")
    assert done.code == 0, done.err
    for name in ("mgm", "slime"):
        assert (pair / "again" / "branches" / name / "preprocessor_config.json").read_text() == own
    (pair / "clip" / "preprocessor_config.json").unlink()


def test_a_loop_by_hand_leaves_unused_places_out_too(fused: tuple[Any, Any]) -> None:
    """The caller's mask knows nothing of placeholders that SliME did not fill."""
    model, processor = fused
    batch = prompt(processor, 0)
    assert (model.read(**batch).attention_mask == 0).any(), "SliME chose fewer tokens than there are places"
    with torch.no_grad():
        told = model.generate(
            **batch, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=2, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        out, mask = model(**batch, use_cache=True), batch["attention_mask"]
        for step, wanted in enumerate(told.logits):
            assert (out.logits[:, -1] - wanted).abs().max() < 1e-4
            mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
            word = told.sequences[:, batch["input_ids"].shape[1] + step, None]
            out = model(input_ids=word, attention_mask=mask, past_key_values=out.past_key_values)
