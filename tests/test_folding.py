"""`fold: true` through the command line: native weights that compute what host and grafts computed together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from tests import folds, tiny_grafts
from tests.folds import compare, lora, members, merged, run
from tests.original_branches import picture

SEEING = "members: {vlm: @vlm}\nlanguage: {method: linear, weights: {vlm: 1}}\nvision: [vlm]\n"

# host -> settings, kind of graft, changes of the donor's config (a list: LoRA of these projections), options
CASES: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "llama lora": ({}, "lora", ["q", "k", "v", "o", "gate", "up", "down"], ""),
    "gpt2 lora": ({}, "lora", ["qkv", "o", "up", "down"], ""),
    "phi3 lora": ({}, "lora", ["qkv", "o", "gate_up", "down"], ""),
    "phi3 lora by parts": ({}, "lora", ["q", "v", "up"], ""),
    "qwen2 lora": ({}, "lora", ["q", "k", "down"], ""),
    "t5 lora": ({}, "lora", ["q", "v", "up"], ""),
    "llama mks2 in one block, with biases": ({"mlp_bias": True}, "mks2", {"bias": True, "layers": [1]}, ""),
    "llama mks2 instead": ({}, "mks2", {}, ", router: none"),
    "gpt2 mks2": ({}, "mks2", {"gated": False, "bias": True, "activation": "gelu_tanh"}, ""),
    "phi3 mks2": ({}, "mks2", {}, ""),
    "qwen2 mks2": ({}, "mks2", {}, ""),
    "opt mks2": ({}, "mks2", {"gated": False, "activation": "relu"}, ""),
    "t5 mks2": ({}, "mks2", {"gated": False, "activation": "relu", "layers": [0, 1, 2, 3, 4]}, ""),
    "llama lavin": ({}, "lavin", {}, ", modality: image"),
    "llama lavin that has biases": ({"attention_bias": True, "mlp_bias": True}, "lavin", {}, ", modality: text"),
    "gpt2 lavin": ({}, "lavin", {}, ", modality: image, adapter_scale: 0.5"),
    "qwen2 lavin": ({}, "lavin", {"adapter_type": "attn"}, ", modality: text"),
    "qwen3 lavin": ({}, "lavin", {"adapter_type": "attn"}, ", modality: image"),
    "opt lavin": ({}, "lavin", {}, ", modality: image"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_native_class_computes_what_host_and_graft_did(case: str, tmp_path: Path) -> None:
    settings, kind, changes, options = CASES[case]
    config = members(tmp_path, case.split(" ", maxsplit=1)[0], **settings)
    changes = lora(config, *changes) if kind == "lora" else changes
    tiny_grafts.donor(tmp_path / "donor", kind, config, **changes)
    _, folded = compare(tmp_path, tmp_path, f"{{from: donor, scale: 0.7, fold: FOLD{options}}}")
    assert folded.config.model_type == config["model_type"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members and donors."""
    return folds.furnish(tmp_path_factory.mktemp("parts"))


# grafts, and those that the output still hears
TOGETHER: dict[str, tuple[str, list[str]]] = {
    "three kinds": (
        "{from: @lavin, modality: image, rounding: none, fold: FOLD}, {from: @mks2, scale: 0.5, fold: FOLD}, "
        "{from: @wide_lora, scale: 0.6, fold: FOLD}", [],
    ),
    "memories, each on what the former left": (
        "{from: @mks2, name: first, fold: FOLD}, {from: @instead, name: second, scale: 0.4, fold: FOLD}", [],
    ),
    "LoRA beside what stays": (
        "{from: @lion}, {from: @wide_lora, fold: FOLD}, {from: @mks2}, {from: @lavin, rounding: none}",
        ["lion", "mks2", "lavin"],
    ),
    "a memory beside what stays": (
        "{from: @lion}, {from: @mks2, fold: FOLD}, {from: @lavin, rounding: none}, {from: @lora}",
        ["lion", "lavin", "lora"],
    ),
    "a memory before one that takes from it": (
        "{from: @mks2, name: first, fold: FOLD}, {from: @instead, name: second, scale: 0.4}", ["second"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_several_grafts(case: str, parts: Path, tmp_path: Path) -> None:
    grafts, left = TOGETHER[case]
    _, folded = compare(parts, tmp_path, grafts)
    assert [graft["name"] for graft in getattr(folded.config, "grafts", [])] == left


@pytest.mark.parametrize("task", ["image", "region"])
def test_one_task_of_lion_is_one_adapter(task: str, parts: Path, tmp_path: Path) -> None:
    heard, folded = compare(parts, tmp_path, f"{{from: @lion, scale: 0.8, task: {task}, fold: FOLD}}")
    config = folded.config.grafts[0]["config"]
    assert (config["adapters"], config["bottleneck"], config["task"]) == (1, 8, task)
    assert sum(w.numel() for w in folded.grafts.parameters()) < sum(w.numel() for w in heard.grafts.parameters())


def test_lion_in_a_t5(tmp_path: Path) -> None:
    tiny_grafts.donor(tmp_path / "donor", "lion", members(tmp_path, "t5"))
    compare(tmp_path, tmp_path, "{from: donor, task: image, fold: FOLD}")


def see(model: Any, folder: Path) -> torch.Tensor:
    """Logits at the words of a prompt with an image, of the tokens that every output has."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    given = processor(images=[picture(60, 40)], text=[f"{processor.image_token} w5 w6 w7"], return_tensors="pt")
    with torch.no_grad():
        return model(**given).logits[:, -4:, :90]


# grafts, and those that the output still hears
SEES: dict[str, tuple[str, list[str]]] = {
    "memory and LoRA": ("{from: @vlm_mks2, scale: 0.5, fold: FOLD}, {from: @vlm_lora, fold: FOLD}", []),
    "LaVIN's language side": (
        "{from: @seeing_lavin, parts: language, modality: image, rounding: none, fold: FOLD}", [],
    ),
    "LaVIN with its tower": (
        "{from: @seeing_lavin, tower: vlm, modality: image, rounding: none, fold: FOLD}", ["lavin"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SEES)
def test_a_vision_member(case: str, parts: Path, tmp_path: Path) -> None:
    grafts, left = SEES[case]
    heard, folded = (
        merged(parts, tmp_path, grafts.replace("FOLD", fold), out, head=SEEING)
        for out, fold in (("heard", "false"), ("folded", "true"))
    )
    assert (folded.config.model_type == "llava") == (not left)
    assert [graft["name"] for graft in getattr(folded.config, "grafts", [])] == left
    wanted = see(heard, tmp_path / "heard")
    assert (see(folded, tmp_path / "folded") - wanted).abs().max() < 1e-5
    plain = see(merged(parts, tmp_path, "", "plain", head=SEEING), tmp_path / "plain")
    assert (plain - wanted).abs().max() > 1e-3
    if left:
        folded.set_scale("lavin", 0.0)  # what is left is the tower's part
        assert (see(folded, tmp_path / "folded") - wanted).abs().max() > 1e-4


def test_a_members_tower_of_another_size(parts: Path, tmp_path: Path) -> None:
    text = json.loads((parts / "vlm" / "config.json").read_text())["text_config"]
    for width, layers, told in (
        (12, 2, "has width 16, and the tower's adapters were made for 12"),
        (16, 3, "has 2 layers, and there are adapters for 3"),
    ):
        tower = {"width": width, "layers": layers, "adapter_dim": 4, "groups": 2, "visual_adapter_type": "normal"}
        tiny_grafts.donor(tmp_path / "donor", "lavin", text, tower=tower)
        ran = run("plan", parts, tmp_path, "{from: donor, tower: vlm}", head=SEEING)
        assert ran.code == 3 and f"lavin cannot be grafted into the tower of vlm: it {told}" in ran.err, ran
