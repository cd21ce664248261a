"""`layer` of an encoder branch: the libraries' own intermediate features, LLaVA's, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fuse.branches.encoder import EncoderBranch, EncoderEyes
from fuse.branches.encoder_files import EncoderFiles, read_encoder
from fuse.branches.tower_types import TOWER_TYPES
from fuse.errors import CheckpointError, FuseError, RecipeError
from tests import tiny_vlm
from tests.cli import fuse_here
from tests.tiny_encoders import (
    OPEN_CLIP,
    VIT,
    WITH_STAGES,
    load,
    projected,
    randomise,
    see,
    timm_branch,
    whole_clip,
    write_projector,
    write_transformers,
)  # fmt: skip


def pixels_of(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def came_out(module: torch.nn.Module, run: Callable[[], object]) -> torch.Tensor:
    """What one module gives while `run` runs: [B, n, D] or [B, D, h, w]."""
    caught: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, args, out: caught.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        run()
    handle.remove()
    return caught[0]


def in_rows(features: torch.Tensor, skip: int) -> torch.Tensor:
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, skip:]


def check(files: EncoderFiles, folder: Path, pixels: torch.Tensor, expected: torch.Tensor) -> None:
    """The branch gives `expected` [B, n, width] after it was written and read, and the eyes count as many tokens."""
    branch = load(files, folder / "out")
    with torch.no_grad():
        np.testing.assert_allclose(branch.patches(pixels), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    seen = see(branch, pixels)
    np.testing.assert_allclose(np.stack([s.tokens for s in seen]), projected(expected, folder), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("layer", [-2, -3])
@pytest.mark.parametrize("name", [name for name in OPEN_CLIP if name not in {"resnet", "eva"}])
def test_open_clip_towers(tmp_path, installed, name, layer):
    visual = whole_clip(name, tmp_path)
    size = OPEN_CLIP[name]["image_size"]
    pixels = pixels_of(*(size if isinstance(size, list) else (size, size)))
    with torch.no_grad():  # the last 2 or 3 layers, and of them the first
        last = visual.forward_intermediates(pixels, indices=-layer)["image_intermediates"]
    expected = in_rows(last[0], 0)
    entry = {"name": "c", "open_clip": name, "weights": "clip.safetensors", "layer": layer}
    files = read_encoder(entry | {"projector": write_projector(tmp_path, expected.shape[-1])}, relative_to=tmp_path)
    assert files.config["layer"] == layer
    check(files, tmp_path, pixels, expected)
    prepared = EncoderEyes(files.config, tmp_path).prepare(Image.new("RGB", (50, 40), "red"))
    assert prepared.grid == (1, *last[0].shape[-2:])
    assert files.grid in {None if name == "convnext" else prepared.grid[1:], prepared.grid[1:]}


@pytest.mark.parametrize("layer", [-2, -3])
@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit3", "test_vit_relpos", "eva02_tiny_patch14_224", "test_convnext"]
)
def test_timm_encoders(tmp_path, name, layer):
    trunk = randomise(timm.create_model(name, num_classes=7))
    pixels = pixels_of(*trunk.default_cfg["input_size"][1:])
    stack = trunk.stages if name == "test_convnext" else trunk.blocks
    expected = in_rows(came_out(stack[layer], lambda: trunk(pixels)), getattr(trunk, "num_prefix_tokens", 0))
    save_file({key: value.clone() for key, value in trunk.state_dict().items()}, tmp_path / "w.safetensors")
    entry = {"name": "c", "timm": name, "weights": "w.safetensors", "layer": layer}
    files = read_encoder(entry | {"projector": write_projector(tmp_path, expected.shape[-1])}, relative_to=tmp_path)
    check(files, tmp_path, pixels, expected)
    prepared = EncoderEyes(files.config, tmp_path).prepare(Image.new("RGB", (50, 40), "red"))
    assert prepared.tokens == expected.shape[1]
    assert files.grid in {None, prepared.grid[1:]}


CONVNEXTS = {"convnext", "convnextv2", "dinov3_convnext"}


@pytest.mark.parametrize("kind", [kind for kind in TOWER_TYPES if kind not in WITH_STAGES or kind in CONVNEXTS])
def test_transformers_encoders(tmp_path, kind):
    folder, layer, side = tmp_path / "encoder", -2, 64 if kind in CONVNEXTS else 32
    model = write_transformers(kind, folder)
    tower = getattr(model, "vision_model", model)
    depth = 4 if kind in CONVNEXTS else 3
    stack = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth)
    pixels, patches = pixels_of(side, side), 16
    features = came_out(stack[layer], lambda: tower(pixel_values=pixels))
    expected = in_rows(features, features.shape[1] - patches)
    entry = {"name": "c", "encoder": "encoder", "layer": layer}
    files = read_encoder(entry | {"projector": write_projector(tmp_path, expected.shape[-1])}, relative_to=tmp_path)
    assert files.grid == (4, 4)
    check(files, tmp_path, pixels, expected)
    assert EncoderEyes(files.config, folder).prepare(Image.new("RGB", (70, 90))).grid == (1, 4, 4)


def test_clip_and_a_projector_are_llavas_image_features(tmp_path):
    """What transformers' LLaVA gives for `vision_feature_layer: -2`, from its tower and its projector as files."""
    llava = tiny_vlm.build("llava", 1)
    tower = llava.model.vision_tower
    tower.save_pretrained(tmp_path / "tower")
    projector = llava.model.multi_modal_projector
    save_file(
        {f"multi_modal_projector.{key}": value for key, value in projector.state_dict().items()},
        tmp_path / "projector.safetensors",
    )
    told = '{"image_processor_type": "CLIPImageProcessor", "crop_size": 28, "size": {"shortest_edge": 28}}'
    (tmp_path / "tower" / "preprocessor_config.json").write_text(told)
    entry = {"name": "c", "encoder": "tower", "projector": "projector.safetensors"}
    pixels = pixels_of(28, 28)
    for layer in (-1, -2):
        files = read_encoder(entry | {"layer": layer}, relative_to=tmp_path)
        seen = see(load(files, tmp_path / f"out{layer}"), pixels)
        with torch.no_grad():
            own = llava.model.get_image_features(
                pixels, vision_feature_layer=layer, vision_feature_select_strategy="default"
            ).pooler_output
        np.testing.assert_allclose(torch.stack([s.tokens for s in seen]), torch.stack(list(own)), atol=1e-6)
        assert len(seen[0].tokens) == 4


def test_class_attention_is_that_of_the_layer(tmp_path):
    for kind in ("clip_vision_model", "dinov2", "vit"):
        model = write_transformers(kind, tmp_path / kind)
        model.set_attn_implementation("eager")
        pixels = pixels_of(32, 32)
        with torch.no_grad():
            attentions = model(pixel_values=pixels, output_attentions=True).attentions
        entry = {"name": "c", "encoder": kind, "projector": write_projector(tmp_path, 32), "layer": -2}
        branch = load(read_encoder(entry, relative_to=tmp_path), tmp_path / f"{kind}-out")
        seen = see(branch, pixels, attention=True)
        found = np.stack([s.attention for s in seen])
        np.testing.assert_allclose(found, attentions[-2].mean(1)[:, 0, -16:], atol=1e-6)
        assert np.abs(found - attentions[-1].mean(1)[:, 0, -16:].numpy()).max() > 1e-4


@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_class_attention_is_what_a_tower_that_ends_there_has(library):
    """A tower cut behind the layer, read at its end, pays the same attention."""
    if library == "timm":
        config = timm_branch("test_vit", 64)
        whole = randomise(EncoderBranch(config | {"layer": -2}))
        cut = randomise(EncoderBranch(config))
        cut.load_state_dict(whole.state_dict())
        del cut.encoder.blocks[-1]
        pixels = pixels_of(160, 160)
    else:
        config = {"library": "open_clip", "architecture": "x", "tower": {"embed_dim": 16, "vision_cfg": VIT}}
        config |= {"projector": [{"in": 32, "out": 20, "bias": False}]}
        whole = randomise(EncoderBranch(config | {"layer": -2}))
        cut = randomise(EncoderBranch(config))
        cut.load_state_dict(whole.state_dict())
        del cut.encoder.transformer.resblocks[-1]
        pixels = pixels_of(16, 16)
    for one, other in zip(see(whole, pixels, attention=True), see(cut, pixels, attention=True), strict=True):
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-6)
        assert (one.tokens - other.tokens).abs().max() > 1e-3, "the cut tower still has its last norm"


NEITHER = (
    "has no layers to choose from: `layer` counts the blocks of a vision transformer or the stages of a ConvNeXt "
    "(leave `layer` out: the encoder is read at its end)"
)
REFUSED = {
    "resnet": ("resnet", -2, f"resnet {NEITHER}"),
    "swin": ("swin", -2, f"swin {NEITHER}"),
    "too deep": ("dinov2", -4, "dinov2 has 3 blocks, and no layer -4 (-1 is its end, -2 the last but one, -3 the first)"),
    "stages": ("convnext", -5, "convnext has 4 stages, and no layer -5 (-1 is its end, -2 the last but one, -4 the first)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_an_encoder_does_not_have(tmp_path, case):
    kind, layer, told = REFUSED[case]
    write_transformers(kind, tmp_path / "encoder")
    entry = {"name": "c", "encoder": "encoder", "projector": write_projector(tmp_path, 32), "layer": layer}
    with pytest.raises(RecipeError) as error:
        read_encoder(entry, relative_to=tmp_path)
    assert str(error.value) == f"vision.c.layer: {told}"


def test_layers_of_architectures_without_layers(tmp_path, installed):
    whole_clip("resnet", tmp_path)
    entry = {"name": "c", "weights": "clip.safetensors", "projector": write_projector(tmp_path, 32), "layer": -2}
    with pytest.raises(RecipeError) as error:
        read_encoder(entry | {"open_clip": "resnet"}, relative_to=tmp_path)
    assert str(error.value) == f"vision.c.layer: resnet {NEITHER}"
    for name in ("test_efficientnet", "test_mambaout", "test_resnet", "swin_tiny_patch4_window7_224"):
        trunk = timm.create_model(name, num_classes=0)
        save_file({key: value.clone() for key, value in trunk.state_dict().items()}, tmp_path / "w.safetensors")
        with pytest.raises(RecipeError) as error:
            read_encoder(entry | {"timm": name, "weights": "w.safetensors"}, relative_to=tmp_path)
        assert str(error.value) == f"vision.c.layer: {name} {NEITHER}"


def test_a_projector_for_another_stage_is_found_before_anything_is_built(tmp_path):
    write_transformers("convnext", tmp_path / "encoder")
    entry = {"name": "c", "encoder": "encoder", "projector": write_projector(tmp_path, 32)}
    assert read_encoder(entry, relative_to=tmp_path).grid == (2, 2)
    with pytest.raises(CheckpointError) as error:
        read_encoder(entry | {"layer": -2}, relative_to=tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/projector.safetensors: takes tokens of 32 numbers but the encoder gives 24"
    )


@pytest.mark.parametrize("layer", [0, 1, "2", True, -7, -2.0])
def test_configs_of_fused_folders_with_no_such_layer(layer):
    with pytest.raises(FuseError) as error:
        EncoderBranch(timm_branch("test_vit", 64) | {"layer": layer})
    assert str(error.value) == f"config.json: branches: layer is {layer!r}, which test_vit does not have"


RECIPE = """members: {{a: a}}
language: {{method: linear, weights: 1}}
vision:
  - a
  - {{name: c, encoder: encoder, projector: projector.safetensors, layer: {}}}
"""


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (RECIPE.format(0), "5:67: vision.1.layer: should be less than or equal to -1, not 0"),
        (RECIPE.format("last"), "5:67: vision.1.layer: should be a valid integer, not 'last'"),
        (
            RECIPE.format(-2).replace("- a\n", "- {from: a, layer: -2}\n"),
            "4:15: vision.0.layer: is for encoder branches, and this branch is a member's",
        ),
    ],
)
def test_recipes_with_a_layer_that_is_none(tmp_path, recipe, told):
    (tmp_path / "recipe.yaml").write_text(recipe)
    ran = fuse_here("plan", tmp_path / "recipe.yaml")
    assert (ran.code, ran.err) == (2, f"fuse: recipe.yaml:{told}\n")
