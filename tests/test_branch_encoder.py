"""Encoder branches: the patch tokens of open_clip, timm and transformers, from a branch's JSON and its files alone."""

import json

import numpy as np
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from fuse.branches.encoder import EncoderBranch, EncoderEyes
from fuse.branches.encoder_files import read_encoder
from fuse.branches.tower_types import TOWER_TYPES
from fuse.errors import CheckpointError, FuseError
from tests.tiny_encoders import (
    HOST,
    OPEN_CLIP,
    VIT,
    VIT_CONFIG,
    WITH_STAGES,
    Tiny,
    TinyConfig,
    load,
    projected,
    randomise,
    see,
    timm_branch,
    whole_clip,
    write_projector,
    write_transformers,
)  # fmt: skip


def open_clip_tokens(visual: torch.nn.Module, name: str, pixels: torch.Tensor) -> torch.Tensor:
    """What open_clip itself calls the tokens of an image."""
    with torch.no_grad():
        if name in {"plain", "wide", "clipa"}:
            visual.output_tokens = True
            return visual(pixels)[1]
        if name == "coca":  # its output tokens are pooled; the unpooled ones are the last intermediates
            return visual.forward_intermediates(pixels, indices=1, output_fmt="NLC")["image_intermediates"][0]
        maps = visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True)
        return maps["image_intermediates"][-1].flatten(2).transpose(1, 2)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_towers_give_open_clips_own_tokens(tmp_path, installed, name):
    visual = whole_clip(name, tmp_path)
    size = OPEN_CLIP[name]["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    expected = open_clip_tokens(visual, name, pixels)
    entry = {
        "name": "c",
        "open_clip": name,
        "weights": "clip.safetensors",
        "projector": write_projector(tmp_path, expected.shape[-1]),
    }
    files = read_encoder(entry, relative_to=tmp_path)
    branch = load(files, tmp_path / "out")
    with torch.no_grad():
        np.testing.assert_allclose(branch.patches(pixels), expected, atol=1e-5)
    seen = see(branch, pixels)
    np.testing.assert_allclose(np.stack([s.tokens for s in seen]), projected(expected, tmp_path), atol=1e-3, rtol=1e-4)
    assert files.hidden_size == HOST and files.checkpoint is None and all(s.attention is None for s in seen)
    assert {row.name for row in files.rows if row.name} == set(branch.state_dict())
    assert {row.reason for row in files.rows if not row.name} <= {"outside the vision tower", "works on pooled tokens"}
    prepared = EncoderEyes(files.config, tmp_path).prepare(Image.new("RGB", (50, 40), "red"))
    assert prepared.tokens == expected.shape[1] == prepared.grid[1] * prepared.grid[2]
    assert files.grid in {None if name == "convnext" else prepared.grid[1:], prepared.grid[1:]}
    assert prepared.inputs["pixel_values"].shape == (3, height, width)


def test_quickgelu_is_kept(tmp_path, installed):
    told = json.loads((installed / "model_configs/plain.json").read_text()) | {"quick_gelu": True}
    (installed / "model_configs/plain-quickgelu.json").write_text(json.dumps(told))
    visual = whole_clip("plain", tmp_path, quick=True)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    entry = {"name": "c", "weights": "clip.safetensors", "projector": write_projector(tmp_path, 32)}
    quick, plain = (
        load(read_encoder(entry | {"open_clip": name}, relative_to=tmp_path), tmp_path / name)
        for name in ("plain-quickgelu", "plain")
    )
    expected = open_clip_tokens(visual, "plain", pixels)
    with torch.no_grad():
        np.testing.assert_allclose(quick.patches(pixels), expected, atol=1e-5)
        assert (plain.patches(pixels) - expected).abs().max() > 1e-3


def test_images_of_different_sizes_are_seen_in_order(tmp_path):
    config = timm_branch("test_convnext", 64)
    branch = randomise(EncoderBranch(config))
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(3, side, 64, generator=generator) for side in (64, 96, 64)]
    together = see(branch, images)
    for image, seen in zip(images, together, strict=True):
        np.testing.assert_allclose(see(branch, image[None])[0].tokens, seen.tokens, atol=1e-5)
    assert [len(s.tokens) for s in together] == [4, 6, 4]


def test_eyes_prepare_images_as_open_clip_does_and_as_its_config_says(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    config = {
        "library": "open_clip", "architecture": "x", "tower": {"embed_dim": 16, "vision_cfg": VIT},
        "preprocess": {"size": [16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear",
                       "resize_mode": "squash"},
        "projector": [{"in": 32, "out": 4, "bias": False}],
    }  # fmt: skip
    squashed = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR), np.float64) / 255
    expected = ((squashed - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).transpose(2, 0, 1)
    prepared = EncoderEyes(config, tmp_path).prepare(image)
    np.testing.assert_allclose(prepared.inputs["pixel_values"], expected, atol=1e-5)
    assert prepared.grid == (1, 4, 4) and not prepared.variable
    config["preprocess"] |= {"resize_mode": "shortest", "interpolation": "bicubic"}
    own = image_transform_v2(PreprocessCfg(**config["preprocess"] | {"size": (16, 16)}), is_train=False)
    np.testing.assert_array_equal(EncoderEyes(config, tmp_path).prepare(image).inputs["pixel_values"], own(image))


TIMM = [
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "test_vit_relpos",
    "test_convnext",
    "test_resnet",
    "test_mambaout",
]
TIMM += ["test_maxvit", "test_efficientnet", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", TIMM)
def test_timm_encoders_give_forward_features(tmp_path, name):
    trunk = randomise(timm.create_model(name, num_classes=7))
    size = trunk.default_cfg["input_size"][1:]
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = trunk.forward_features(pixels)
    if features.ndim == 4:
        expected = (
            features.reshape(2, -1, features.shape[-1])
            if trunk.__class__.__name__ in {"SwinTransformer", "MambaOut"}
            else features.flatten(2).transpose(1, 2)
        )
    else:
        expected = features[:, trunk.num_prefix_tokens :]
    save_file({key: value.clone() for key, value in trunk.state_dict().items()}, tmp_path / "model.safetensors")
    entry = {
        "name": "c",
        "timm": name,
        "weights": "model.safetensors",
        "projector": write_projector(tmp_path, expected.shape[-1]),
    }
    files = read_encoder(entry, relative_to=tmp_path)
    branch = load(files, tmp_path / "out")
    with torch.no_grad():
        np.testing.assert_allclose(branch.patches(pixels), expected, atol=1e-5 * float(expected.abs().max()))
    assert {row.name for row in files.rows if row.name} == set(branch.state_dict())
    prepared = EncoderEyes(files.config, tmp_path).prepare(Image.new("RGB", (50, 40), "red"))
    assert prepared.tokens == expected.shape[1] == prepared.grid[1] * prepared.grid[2]
    assert files.grid in {None, prepared.grid[1:]}


def test_timm_preprocessing_comes_from_the_config_beside_the_weights_or_from_timm(tmp_path):
    trunk = randomise(timm.create_model("test_vit", num_classes=0))
    save_file({key: value.clone() for key, value in trunk.state_dict().items()}, tmp_path / "model.safetensors")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    entry = {
        "name": "c",
        "timm": "test_vit",
        "weights": "model.safetensors",
        "projector": write_projector(tmp_path, 64),
    }
    own = read_encoder(entry, relative_to=tmp_path)
    assert own.config["preprocess"] == {}
    cfg = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("test_vit").to_dict())
    expected = timm.data.create_transform(**cfg, is_training=False)(image)
    np.testing.assert_array_equal(EncoderEyes(own.config, tmp_path).prepare(image).inputs["pixel_values"], expected)
    stated = {
        "input_size": [3, 160, 160],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
    }
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": stated}))
    told = read_encoder(entry, relative_to=tmp_path)
    assert told.config["preprocess"]["mean"] == [0.1, 0.2, 0.3]
    middle = np.asarray(image, np.float64)[20:180, 20:180] / 255  # 160 / 0.8 == 200: no resizing, a centre crop
    prepared = EncoderEyes(told.config, tmp_path).prepare(image)
    np.testing.assert_allclose(
        prepared.inputs["pixel_values"], (middle - [0.1, 0.2, 0.3]).transpose(2, 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("kind", TOWER_TYPES)
def test_transformers_encoders_give_their_last_hidden_state(tmp_path, kind):
    folder = tmp_path / "encoder"
    model = write_transformers(kind, folder)
    side = 64 if kind in WITH_STAGES else 32
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        state = getattr(model, "vision_model", model)(pixel_values=pixels).last_hidden_state
    expected = (
        state.flatten(2).transpose(1, 2) if state.ndim == 4 else state[:, -((side // (32 if side == 64 else 8)) ** 2) :]
    )
    entry = {"name": "c", "encoder": "encoder", "projector": write_projector(tmp_path, 32)}
    files = read_encoder(entry, relative_to=tmp_path)
    branch = load(files, tmp_path / "out")
    with torch.no_grad():
        np.testing.assert_allclose(branch.patches(pixels), expected, atol=1e-5)
    prepared = EncoderEyes(files.config, folder).prepare(Image.new("RGB", (70, 90), "red"))
    assert prepared.tokens == expected.shape[1] and prepared.grid == (1, *files.grid)
    own = AutoImageProcessor.from_pretrained(folder)(images=Image.new("RGB", (70, 90), "red"), return_tensors="pt")
    np.testing.assert_array_equal(prepared.inputs["pixel_values"], own["pixel_values"][0])
    assert (
        len(
            {row.entry.name for row in files.rows} & {key for f in folder.glob("*.safetensors") for key in load_file(f)}
        )
        > 5
    )


def test_a_loaded_branch_is_the_built_one_in_half_precision_too(tmp_path):
    """Tables that no checkpoint fills (positions, rope, window masks) after from_pretrained, and after a second round."""
    for kind in ("clip_vision_model", "dinov3_vit", "swinv2"):
        folder = tmp_path / kind
        write_transformers(kind, folder)
        side = 64 if kind == "swinv2" else 32
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        files = read_encoder(
            {"name": "c", "encoder": kind, "projector": write_projector(tmp_path, 32)}, relative_to=tmp_path
        )
        loaded = load(files, tmp_path / f"{kind}-32")
        half = load(files, tmp_path / f"{kind}-16", torch.bfloat16)
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
        tokens = see(loaded, pixels)[0].tokens
        again = see(half, pixels.bfloat16())[0].tokens
        assert again.dtype == torch.bfloat16
        assert (again.float() - tokens).norm() < 0.05 * tokens.norm()
        host = Tiny(TinyConfig(branch=files.config))
        host.branches["c"] = loaded
        host.save_pretrained(tmp_path / f"{kind}-again")
        other, report = Tiny.from_pretrained(tmp_path / f"{kind}-again", output_loading_info=True)
        assert not any(report.values())
        np.testing.assert_array_equal(see(other.eval().branches["c"], pixels)[0].tokens, tokens)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def class_row(query: np.ndarray, key: np.ndarray, heads: int) -> np.ndarray:
    """Mean over heads of token 0's attention. query, key: [L, D]."""
    length, width = key.shape
    q, k = (x.reshape(length, heads, width // heads).transpose(1, 0, 2) for x in (query, key))
    return softmax(q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)).mean(0)[0]


def test_class_attention_of_an_open_clip_vit():
    config = {
        "library": "open_clip", "architecture": "x", "tower": {"embed_dim": 16, "vision_cfg": VIT},
        "projector": [{"in": 32, "out": HOST, "bias": False}],
    }  # fmt: skip
    branch = randomise(EncoderBranch(config))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tower = branch.encoder
    with torch.no_grad():
        hidden = tower._embeds(pixels)
        for block in tower.transformer.resblocks[:-1]:
            hidden = block(hidden)
        normed = tower.transformer.resblocks[-1].ln_1(hidden).double().numpy()
    attn = tower.transformer.resblocks[-1].attn
    weight, bias = attn.in_proj_weight.detach().double().numpy(), attn.in_proj_bias.detach().double().numpy()
    seen = see(branch, pixels, attention=True)
    for i, one in enumerate(seen):
        q, k, _ = np.split(normed[i] @ weight.T + bias, 3, axis=-1)
        np.testing.assert_allclose(one.attention, class_row(q, k, 4)[1:], atol=1e-6)
        np.testing.assert_array_equal(one.tokens, see(branch, pixels)[i].tokens)


def test_class_attention_of_a_timm_vit_with_registers_left_out():
    branch = randomise(EncoderBranch(timm_branch("test_vit", 64)))
    pixels = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    trunk = branch.encoder
    caught = []
    handle = trunk.blocks[-1].attn.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    plain = see(branch, pixels)[0]
    handle.remove()
    attn = trunk.blocks[-1].attn
    with torch.no_grad():
        q, k, _ = np.split(attn.qkv(caught[0])[0].double().numpy(), 3, axis=-1)
    one = see(branch, pixels, attention=True)[0]
    np.testing.assert_allclose(one.attention, class_row(q, k, attn.num_heads)[trunk.num_prefix_tokens :], atol=1e-6)
    np.testing.assert_allclose(one.tokens, plain.tokens, atol=1e-4)
    assert plain.attention is None and attn.fused_attn


@pytest.mark.parametrize("kind", [kind for kind, row in TOWER_TYPES.items() if row.has_class and not row.composite])
def test_class_attention_of_transformers_encoders(tmp_path, kind):
    model = write_transformers(kind, tmp_path / "encoder")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        last = model(pixel_values=pixels, output_attentions=True).attentions[-1]
    files = read_encoder(
        {"name": "c", "encoder": "encoder", "projector": write_projector(tmp_path, 32)}, relative_to=tmp_path
    )
    branch = load(files, tmp_path / "out")
    seen = see(branch, pixels, attention=True)
    np.testing.assert_allclose(np.stack([s.attention for s in seen]), last.mean(1)[:, 0, -16:], atol=1e-6)
    assert branch.encoder.config._attn_implementation != "eager"
    assert see(branch, pixels)[0].attention is None


@pytest.mark.parametrize(("name", "width"), [("test_convnext", 64), ("test_vit3", 96), ("xcit_nano_12_p16_224", 128)])
def test_encoders_without_a_class_token_say_what_works(name, width):
    branch = randomise(EncoderBranch(timm_branch(name, width)))
    with pytest.raises(CheckpointError) as error:
        see(branch, torch.zeros(1, 3, 160, 160), attention=True)
    assert str(error.value) == (
        f"config.json: branches: the encoder {name} has no class token over its patches (prune: norm works)"
    )


HOSTILE = {
    "library": ({"library": "os"}, "config.json: branches: library 'os' is not one of open_clip, timm, transformers"),
    "fetch by name": ({"library": "timm", "tower": {"name": "hf-hub:a/b"}}, "config.json: branches: timm: 'hf-hub:a/b' is not the name of an architecture"),
    "fetch inside": ({"library": "open_clip", "tower": {"embed_dim": 4, "vision_cfg": {"timm_model_name": "local-dir:/x"}}}, "config.json: branches: timm: 'local-dir:/x' is not the name of an architecture"),
    "unknown timm": ({"library": "timm", "tower": {"name": "no_such_vit"}}, "config.json: branches: timm does not build 'x' (RuntimeError: Unknown model (no_such_vit))"),
    "unknown kind": ({"library": "transformers", "tower": {"model_type": "llama"}}, "model_type 'llama' is no image encoder that can be a branch"),
    "no projector": ({"projector": []}, "config.json: branches: an encoder branch has no projector"),
    "broken projector": ({"projector": [{"in": 64, "out": 8, "bias": False}, {"in": 9, "out": 8, "bias": False}]}, "config.json: branches: projector layer 1 does not fit the one before it"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_configs_of_fused_folders_that_make_no_branch(case):
    change, told = HOSTILE[case]
    with pytest.raises(FuseError) as error:
        EncoderBranch(timm_branch("test_vit", 64) | {"architecture": "x"} | change)
    assert str(error.value) == told


def test_images_of_a_size_that_the_encoder_does_not_take(tmp_path):
    config = timm_branch("vit_tiny_patch16_224", 192) | {"preprocess": {"size": [96, 96]}}
    with pytest.raises(CheckpointError) as error:
        EncoderEyes(config, tmp_path).prepare(Image.new("RGB", (8, 8)))
    assert str(error.value) == (
        "config.json: branches: the encoder takes no images of 96x96: Input height (96) doesn't match model (224)."
    )


def test_a_tower_config_names_no_kernels_to_fetch():
    tower = VIT_CONFIG | {
        "model_type": "clip_vision_model",
        "attn_implementation": "org/kernel",
        "_attn_implementation": "org/kernel",
    }
    config = {"library": "transformers", "architecture": "clip_vision_model", "tower": tower}
    branch = EncoderBranch(config | {"projector": [{"in": 32, "out": 4, "bias": False}]})
    assert branch.encoder.config._attn_implementation == "sdpa"


def test_a_projector_of_another_width_is_one_sentence():
    with pytest.raises(CheckpointError) as error:
        see(EncoderBranch(timm_branch("test_convnext", 65)).eval(), torch.zeros(1, 3, 32, 32))
    assert str(error.value) == (
        "config.json: branches: the projector takes tokens of 65 numbers but the encoder gives 64"
    )
