"""Slots of vision towers: transformers' CLIP and SigLIP, open_clip's and timm's ViTs, alone and inside a branch."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from torch import nn
from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from fuse.branches.clip_tower import build_tower, look
from fuse.branches.encoder import EncoderBranch
from fuse.errors import CheckpointError
from fuse.grafts.slots import slots_of
from tests import tiny_encoders
from tests.tiny_encoders import OPEN_CLIP, VIT_CONFIG, randomise

LIBRARIES = ["clip", "siglip", "open_clip", "open_clip_scaled", "timm", "timm_scaled"]
# names of a block's parts: attention norm, attention, what scales it, MLP norm, MLP, what scales it, first and last matrix
NAMES = {
    "transformers": ("layer_norm1", "self_attn", "", "layer_norm2", "mlp", "", "mlp.fc1", "mlp.fc2"),
    "open_clip": ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2", "mlp.c_fc", "mlp.c_proj"),
    "timm": ("norm1", "attn", "ls1", "norm2", "mlp", "ls2", "mlp.fc1", "mlp.fc2"),
}
WIDTH = {"timm": 64, "timm_scaled": 64}


def build(name: str) -> nn.Module:
    if name.startswith("timm"):
        scale = {"init_values": 0.5} if name == "timm_scaled" else {}
        made = timm.create_model("test_vit", pretrained=False, num_classes=0, **scale)
    elif name.startswith("open_clip"):
        made = _build_vision_tower(16, dict(OPEN_CLIP["wide" if name == "open_clip_scaled" else "plain"]))
    else:
        config = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[name](**VIT_CONFIG)
        made = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}[name](config)
    return randomise(made.float()).double()


def blocks(name: str, tower: Any) -> tuple[Any, tuple[str, ...]]:
    if name.startswith("timm"):
        return tower.blocks, NAMES["timm"]
    if name.startswith("open_clip"):
        return tower.transformer.resblocks, NAMES["open_clip"]
    return tower.encoder.layers, NAMES["transformers"]


def run(name: str, tower: Any) -> torch.Tensor:
    """What the last block gives [2, n, width]."""
    size = {"timm": (160, 160), "open_clip": (16, 16), "open_clip_scaled": (16, 24)}.get(
        name.replace("timm_scaled", "timm"), (32, 32)
    )
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found: list[torch.Tensor] = []
    handle = blocks(name, tower)[0][-1].register_forward_hook(lambda module, args, out: found.append(out))
    with torch.no_grad():
        tower(pixels)
    handle.remove()
    return found[0][0] if isinstance(found[0], tuple) else found[0]


@pytest.mark.parametrize("name", LIBRARIES)
def test_identities_change_nothing_and_everything_can_be_removed(name: str) -> None:
    tower = build(name)
    plain = run(name, tower)
    slots = slots_of(tower)["tower"]
    assert (slots.width, slots.layers) == (plain.shape[-1], len(blocks(name, tower)[0]))
    assert slots.heads == {"open_clip": 4, "clip": 2, "siglip": 2, "timm": 2}[name.removesuffix("_scaled")]
    for weight in (0.0, 1.0):
        for layer in range(slots.layers):
            for which in ("attention", "ffn"):
                slots.norm_output(layer, which, lambda y, weight=weight: y + weight)
                slots.norm(layer, which, lambda x, y, weight=weight: y + weight * x)
            slots.ffn(layer, lambda x, y, weight=weight: y + weight * x)
            slots.ffn_residual(layer, lambda h, y, weight=weight: y + weight * h)
            for which in ("up", "down"):
                slots.linear(layer, which, lambda x, y, weight=weight: y + weight)
        assert torch.equal(run(name, tower), plain) is (weight == 0)
    slots.remove()
    assert torch.equal(run(name, tower), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tower.modules())


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("which", ["attention", "ffn"])
def test_a_norm_output_goes_to_its_reader(name: str, which: str) -> None:
    tower, wanted, plain = build(name), build(name), run(name, build(name))
    gain = torch.linspace(0.5, 1.5, plain.shape[-1], dtype=torch.float64)
    slots_of(tower)["tower"].norm_output(1, which, lambda y: y * gain)
    made, names = blocks(name, wanted)
    norm = made[1].get_submodule(names[0 if which == "attention" else 3])
    with torch.no_grad():
        norm.weight.mul_(gain)
        norm.bias.mul_(gain)
    assert torch.allclose(run(name, tower), run(name, wanted), atol=1e-9)
    assert not torch.allclose(run(name, tower), plain, atol=1e-3)


@pytest.mark.parametrize("slot", ["ffn", "ffn_residual"])
@pytest.mark.parametrize("name", LIBRARIES)
def test_beside_the_mlp(name: str, slot: str) -> None:
    """What is added comes behind a layer scale: the residual stream without the MLP, plus both."""
    tower, empty = build(name), build(name)
    plain = run(name, tower)
    made, names = blocks(name, empty)
    with torch.no_grad():
        last = made[-1].get_submodule(names[7])
        last.weight.zero_()
        last.bias.zero_()
    h = run(name, empty)
    memory = torch.linspace(-1, 1, plain.shape[-1], dtype=torch.float64)
    slots = slots_of(tower)["tower"]
    getattr(slots, slot)(slots.layers - 1, lambda x, y: y + (x * memory).sin())
    norm = made[-1].get_submodule(names[3])
    read = torch.nn.functional.layer_norm(h, h.shape[-1:], norm.weight, norm.bias, norm.eps) if slot == "ffn" else h
    assert torch.allclose(run(name, tower), plain + (read * memory).sin(), atol=1e-9)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_low_rank_part_of_the_mlp(name: str) -> None:
    tower, wanted, plain = build(name), build(name), run(name, build(name))
    made, names = blocks(name, wanted)
    for which, path in (("up", names[6]), ("down", names[7])):
        weight = made[0].get_submodule(path).weight
        down = torch.randn(2, weight.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        up = torch.randn(weight.shape[0], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        slots_of(tower)["tower"].linear(0, which, lambda x, y, down=down, up=up: y + x @ down.T @ up.T)
        with torch.no_grad():
            weight.add_(up @ down)
    assert torch.allclose(run(name, tower), run(name, wanted), atol=1e-9)
    assert not torch.allclose(run(name, tower), plain, atol=1e-3)


def test_projections_of_clip() -> None:
    tower, wanted = build("clip"), build("clip")
    for which in ("q", "k", "v", "o"):
        slots_of(tower)["tower"].linear(1, which, lambda x, y: y + 0.1 * x.roll(1, -1))
        attention = wanted.encoder.layers[1].self_attn
        with torch.no_grad():
            turned = 0.1 * torch.eye(32, dtype=torch.float64).roll(1, 0)
            getattr(attention, "out_proj" if which == "o" else f"{which}_proj").weight.add_(turned)
    assert torch.allclose(run("clip", tower), run("clip", wanted), atol=1e-9)


def test_the_tower_of_a_branch_is_found_inside_it() -> None:
    branch = EncoderBranch(
        {
            "library": "transformers", "architecture": "clip", "preprocess": {}, "layer": -2,
            "tower": {"model_type": "clip_vision_model", **VIT_CONFIG},
            "projector": [{"in": 32, "out": tiny_encoders.HOST, "bias": False}],
        }
    )  # fmt: skip
    randomise(branch)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = branch.patches(pixels)
        slots = slots_of(branch)["tower"]
        slots.norm_output(2, "attention", lambda y: y * 3)
        assert torch.equal(branch.patches(pixels), plain)  # the last layer is not read
        slots.norm_output(1, "attention", lambda y: y * 3)
        assert not torch.allclose(branch.patches(pixels), plain)
    slots.remove()
    assert torch.equal(branch.patches(pixels), plain)


def test_the_tower_of_an_original_llava_runs_blocks_by_itself() -> None:
    config = {"model_type": "clip_vision_model", **VIT_CONFIG}
    tower: Any = randomise(build_tower({"towers": {"vision_tower": config}})).double()
    wanted = deepcopy(tower)
    slots_of(tower)["tower"].norm_output(0, "ffn", lambda y: y * 2)
    with torch.no_grad():
        norm = wanted.encoder.layers[0].layer_norm2
        norm.weight.mul_(2)
        norm.bias.mul_(2)
        views = torch.randn(1, 3, 32, 32, dtype=torch.float64)
        sight: Any = SimpleNamespace(tower="clip", depth=2, with_class=False, has_class_attention=True)
        assert torch.allclose(look(tower, views, sight)[0], look(wanted, views, sight)[0], atol=1e-9)


@pytest.mark.parametrize(
    ("name", "slot", "told"),
    [
        ("clip", "attention_prefix", "a CLIP tower of transformers has no slot attention_prefix"),
        ("clip", "norm final", "a CLIP tower of transformers has no slot norm final"),
        ("siglip", "linear gate", "a SigLIP tower of transformers has no slot linear gate"),
        ("open_clip", "linear q", "a ViT of open_clip has no slot linear q"),
        ("timm", "linear k", "a ViT of timm has no slot linear k"),
    ],
)
def test_a_slot_that_a_tower_lacks(name: str, slot: str, told: str) -> None:
    slots: Any = slots_of(build(name))["tower"]
    kind, _, which = slot.partition(" ")
    with pytest.raises(CheckpointError) as error:
        if kind == "attention_prefix":
            slots.attention_prefix(0, lambda q, keyvalue, scaling: q)
        else:
            getattr(slots, kind)(0, which, lambda x, y: y)
    assert str(error.value) == told


def test_an_encoder_without_a_table_and_a_module_with_two_towers() -> None:
    known = "llama, mistral, qwen2, qwen2_vl_text, qwen2_5_vl_text, gemma, smollm3, qwen3, qwen3_vl_text, phi3, gpt2, opt, t5"
    with pytest.raises(CheckpointError) as error:
        slots_of(timm.create_model("test_convnext", pretrained=False))
    assert str(error.value) == f"ConvNeXt has no table of slots, so no graft attaches to it (grafts attach to {known})"
    config = CLIPModel.config_class(
        vision_config=VIT_CONFIG, text_config={**tiny_encoders._TEXT, "num_attention_heads": 2}, projection_dim=8
    )
    with pytest.raises(CheckpointError) as error:
        slots_of(CLIPModel(config))
    assert str(error.value) == "CLIPModel has 2 towers, so a graft cannot tell which is meant"
