"""Encoder branches: the patch tokens of open_clip, timm and transformers, from a branch's JSON and its files alone."""

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoImageProcessor, AutoModel, PretrainedConfig, PreTrainedModel

from fuse.branches import encoder_files, open_clip_files
from fuse.branches.encoder import EncoderBranch, EncoderEyes
from fuse.branches.encoder_files import read_encoder
from fuse.branches.tower_types import TOWER_TYPES
from fuse.errors import CheckpointError, FuseError, RecipeError

HOST = 20  # hidden size of the host


class TinyConfig(PretrainedConfig):
    model_type = "tiny_encoder_host"

    def __init__(self, branch=None, **kwargs):
        super().__init__(**kwargs)
        self.branch = branch


class Tiny(PreTrainedModel):
    """A model that is nothing but one encoder branch, to be loaded as a fused folder is."""

    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.branches = torch.nn.ModuleDict({"c": EncoderBranch(config.branch)})
        self.post_init()


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2, generator=generator)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def write_projector(folder: Path, width: int) -> str:
    generator = torch.Generator().manual_seed(7)
    tensors = {
        "model.mm_projector.0.weight": torch.randn(24, width, generator=generator),
        "model.mm_projector.0.bias": torch.randn(24, generator=generator),
        "model.mm_projector.2.weight": torch.randn(HOST, 24, generator=generator),
        "model.mm_projector.2.bias": torch.randn(HOST, generator=generator),
    }
    save_file(tensors, folder / "projector.safetensors")
    return "projector.safetensors"


def load(files: encoder_files.EncoderFiles, folder: Path, dtype: torch.dtype = torch.float32) -> EncoderBranch:
    """The branch as a fused folder gives it: its rows written, its JSON saved, both read by `from_pretrained`."""
    tensors = {}
    for row in files.rows:
        if row.name is not None:
            with safe_open(row.entry.file, "pt") as file:
                tensors[f"branches.c.{row.name}"] = file.get_tensor(row.entry.name)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    TinyConfig(branch=json.loads(json.dumps(files.config))).save_pretrained(folder)
    model, report = Tiny.from_pretrained(folder, output_loading_info=True, dtype=dtype)
    assert not any(report.values()), report
    return model.eval().branches["c"]


def see(branch: EncoderBranch, pixels: torch.Tensor, attention: bool = False):
    with torch.no_grad():
        return branch({"pixel_values": list(pixels)}, text=[], embed=lambda ids: ids, attention=attention)


def projected(tokens: torch.Tensor, folder: Path) -> np.ndarray:
    """LLaVA's mlp2x_gelu in float64 numpy."""
    weights = {
        key.rpartition("projector.")[2]: value.double().numpy()
        for key, value in load_file(folder / "projector.safetensors").items()
    }
    erf = np.vectorize(math.erf)
    hidden = tokens.double().numpy() @ weights["0.weight"].T + weights["0.bias"]
    hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    return hidden @ weights["2.weight"].T + weights["2.bias"]


# ---------------------------------------------------------------- open_clip

VIT = {"image_size": 16, "layers": 3, "width": 32, "head_width": 8, "patch_size": 4}
OPEN_CLIP = {
    "plain": VIT,
    "wide": VIT | {"image_size": [16, 24], "mlp_ratio": 2.5, "ls_init_value": 1e-2},
    "clipa": VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "coca": VIT | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
    "resnet": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
    "test_vit": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None},
    "siglip": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "convnext": {"image_size": 160, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp"},
    "eva": {"image_size": 224, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None},
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An open_clip that also has tiny architectures."""
    package = tmp_path / "open_clip"
    real = Path(open_clip.__file__).parent
    shutil.copytree(real / "model_configs", package / "model_configs")
    for name in ("constants.py", "pretrained.py"):
        shutil.copy(real / name, package / name)
    for name, vision in OPEN_CLIP.items():
        told = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {}}
        (package / "model_configs" / f"{name}.json").write_text(json.dumps(told))
    monkeypatch.setattr(open_clip_files, "_package", lambda: package)
    return package


def whole_clip(name: str, folder: Path, quick: bool = False) -> torch.nn.Module:
    """open_clip's own tower with random weights, saved as one file of a whole CLIP model."""
    visual = randomise(_build_vision_tower(16, dict(OPEN_CLIP[name]), quick))
    tensors = {f"visual.{key}": value.clone() for key, value in visual.state_dict().items()}
    text = {
        "logit_scale": torch.ones(()),
        "positional_embedding": torch.ones(4, 4),
        "text_projection": torch.ones(4, 4),
    }
    save_file(tensors | text, folder / "clip.safetensors")
    return visual


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


def test_a_file_of_the_vision_tower_alone(tmp_path, installed):
    visual = whole_clip("plain", tmp_path)
    save_file({key: value.clone() for key, value in visual.state_dict().items()}, tmp_path / "visual.safetensors")
    entry = {"name": "c", "open_clip": "plain", "projector": write_projector(tmp_path, 32)}
    names = [
        {row.name for row in read_encoder(entry | {"weights": file}, relative_to=tmp_path).rows if row.name}
        for file in ("visual.safetensors", "clip.safetensors")
    ]
    assert names[0] == names[1]


def test_images_of_different_sizes_are_seen_in_order(tmp_path):
    config = timm_branch("test_convnext", 64)
    branch = randomise(EncoderBranch(config))
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(3, side, 64, generator=generator) for side in (64, 96, 64)]
    together = see(branch, images)
    for image, seen in zip(images, together, strict=True):
        np.testing.assert_allclose(see(branch, image[None])[0].tokens, seen.tokens, atol=1e-5)
    assert [len(s.tokens) for s in together] == [4, 6, 4]


REGISTRY = {  # size of a token and grid, from the papers' or the model cards' tables
    "RN50x4": (2560, 9), "ViT-B-32": (768, 7), "ViT-L-14-CLIPA-336": (1024, 24), "coca_ViT-B-32": (768, 7),
    "ViT-B-16-SigLIP-384": (768, 24), "convnext_large_d_320": (1536, 10), "EVA02-B-16": (768, 14), "EVA01-g-14": (1408, 16),
    "MobileCLIP-B": (768, 14), "MobileCLIP-S1": (1024, 8), "MobileCLIP2-S3": (3072, 4), "PE-Core-T-16-384": (192, 24),
    "swin_base_patch4_window7_224": (1024, 7), "vit_relpos_medium_patch16_cls_224": (512, 14),
    "vit_medium_patch16_gap_256": (512, 16), "ViTamin-XL-256": (1152, 16),
}  # fmt: skip


def hollow(path: Path, module: torch.nn.Module, prefix: str) -> None:
    """A safetensors file of the module's tensors that takes no disk: a header, and a hole."""
    dtypes = {torch.float32: "F32", torch.int64: "I64"}
    begin, header = 0, {}
    for key, value in module.state_dict().items():
        end = begin + value.numel() * value.element_size()
        header[prefix + key] = {"dtype": dtypes[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + begin)


@pytest.mark.parametrize("name", REGISTRY)
def test_registry_towers_build_on_meta_with_the_names_and_sizes_that_plan_sees(tmp_path, name):
    model = open_clip_files.architecture(name, "")
    with torch.device("meta"):
        visual = _build_vision_tower(model["embed_dim"], dict(model["vision_cfg"]), model["quick_gelu"])
    hollow(tmp_path / "w.safetensors", visual, "visual.")
    width, side = REGISTRY[name]
    entry = {"name": "c", "open_clip": name, "weights": "w.safetensors", "projector": write_projector(tmp_path, width)}
    files = read_encoder(entry, relative_to=tmp_path)
    assert files.grid == (side, side)
    with torch.device("meta"):
        branch = EncoderBranch(files.config).eval()
    rows = {row.name: row.entry.shape for row in files.rows if row.name}
    assert rows == {key: tuple(value.shape) for key, value in branch.state_dict().items()}
    prepared = EncoderEyes(files.config, tmp_path).prepare(Image.new("RGB", (64, 64)))
    assert prepared.layout == (side * side,) and prepared.grid == (1, side, side)
    (seen,) = see(branch, prepared.inputs["pixel_values"].to("meta")[None])
    assert seen.tokens.shape == (side * side, HOST)
    wrong = entry | {"projector": "wrong.safetensors"}
    save_file({"weight": torch.zeros(HOST, width + 1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_encoder(wrong, relative_to=tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/wrong.safetensors: takes tokens of {width + 1} numbers but the encoder gives {width}"
    )


def test_preprocessing_is_open_clips_table_for_every_published_model():
    from open_clip.pretrained import _PRETRAINED

    kinds = set()
    for name, tags in _PRETRAINED.items():
        for tag, row in tags.items():
            model = {"quick_gelu": bool(row.get("quick_gelu")), "vision_cfg": {}}
            way = open_clip_files.preprocessing(name, tag, model, Path("nowhere/w.safetensors"), "")
            assert way == {k: list(row[k]) if isinstance(row[k], tuple) else row[k] for k in open_clip_files.PREPROCESS}
            kinds.add(json.dumps(way))
    assert len(kinds) >= 7


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_architecture_knows_how_images_are_prepared_or_asks_for_the_tag(name):
    model = open_clip_files.architecture(name, "")
    if name in {"ViT-L-14", "ViT-H-14-quickgelu"}:
        with pytest.raises(RecipeError) as error:
            open_clip_files.preprocessing(name, "", model, Path("nowhere/w.safetensors"), "vision.c")
        tag = {"ViT-L-14": "laion400m_e31", "ViT-H-14-quickgelu": "metaclip_fullcc"}[name]
        assert str(error.value) == (
            f"vision.c: the published weights of {name} want images prepared in 2 ways "
            f"(say which they are, e.g. {name}:{tag}, or keep open_clip_config.json beside the weights)"
        )
        return
    way = open_clip_files.preprocessing(name, "", model, Path("nowhere/w.safetensors"), "")
    PreprocessCfg(size=(8, 8), **way)
    assert ("SigLIP" in name or "siglip" in name) <= (way["resize_mode"] == "squash" and way["mean"] == [0.5] * 3)


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


# ---------------------------------------------------------------- timm


def timm_branch(name: str, width: int) -> dict:
    return {
        "library": "timm", "architecture": name, "tower": {"name": name}, "preprocess": {},
        "projector": [{"in": width, "out": HOST, "bias": False}],
    }  # fmt: skip


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


# ---------------------------------------------------------------- transformers

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
_SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 4,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
}
_WITH_STAGES = {"convnext": _STAGES, "convnextv2": _STAGES, "dinov3_convnext": _STAGES, "swin": _SWIN, "swinv2": _SWIN}
_WITH_STAGES["resnet"] = _STAGES | {"embedding_size": 8}


def write_transformers(kind: str, folder: Path) -> PreTrainedModel:
    size = 64 if kind in _WITH_STAGES else 32
    made = CONFIG_MAPPING["mlcd_vision_model" if kind == "mlcd" else kind]
    if TOWER_TYPES[kind].composite:
        config = made(vision_config=_VIT, text_config=_TEXT, projection_dim=8)
    else:
        config = made(**_WITH_STAGES.get(kind, _VIT))
    model = randomise(AutoModel.from_config(config))
    model.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text()) | {"model_type": kind}
    (folder / "config.json").write_text(json.dumps(told))
    square = {"height": size, "width": size}
    prepare = {"image_processor_type": "CLIPImageProcessor", "crop_size": square, "size": {"shortest_edge": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare))
    return model


@pytest.mark.parametrize("kind", TOWER_TYPES)
def test_transformers_encoders_give_their_last_hidden_state(tmp_path, kind):
    folder = tmp_path / "encoder"
    model = write_transformers(kind, folder)
    side = 64 if kind in _WITH_STAGES else 32
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


# ---------------------------------------------------------------- class attention


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


@pytest.mark.parametrize(("name", "width"), [("test_convnext", 64), ("test_vit3", 96)])
def test_encoders_without_a_class_token_say_what_works(name, width):
    branch = randomise(EncoderBranch(timm_branch(name, width)))
    with pytest.raises(CheckpointError) as error:
        see(branch, torch.zeros(1, 3, 160, 160), attention=True)
    assert str(error.value) == (
        f"config.json: branches: the encoder {name} has no class token over its patches (prune: norm works)"
    )


# ---------------------------------------------------------------- what is refused


def test_reading_files_imports_neither_torch_nor_the_libraries(tmp_path):
    save_file({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    code = (
        "import sys; from pathlib import Path; from fuse.branches.encoder_files import read_encoder\n"
        "try: read_encoder({'name': 'c', 'open_clip': 'ViT-B-32', 'weights': 'w.safetensors', 'projector': 'p'},"
        f" relative_to=Path({str(tmp_path)!r}))\n"
        "except Exception as error: print(error)\n"
        "print({'torch', 'open_clip', 'timm', 'transformers', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()" and "has no tensor" in out


@pytest.fixture
def tiny(tmp_path, installed):
    whole_clip("plain", tmp_path)
    write_projector(tmp_path, 32)
    write_transformers("clip", tmp_path / "encoder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "hidden.safetensors").write_bytes(b"PK\x03\x04")
    return tmp_path


PICKLE = "is not safetensors but a pickle, which can run code; fuse does not read it (where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE))"
BASE = {"name": "c", "open_clip": "plain", "weights": "clip.safetensors", "projector": "projector.safetensors"}
REFUSED = {
    "two libraries": ({"timm": "test_vit"}, RecipeError, "vision.c: names 2 of open_clip, timm and encoder (name one)"),
    "no library": ({"open_clip": None}, RecipeError, "vision.c: names 0 of open_clip, timm and encoder (name one)"),
    "no projector": ({"projector": None}, RecipeError, "vision.c: has no projector (`projector: FILE.safetensors`, trained for the host)"),
    "no weights": ({"weights": None}, RecipeError, "vision.c: open_clip needs `weights: FILE.safetensors`"),
    "weights of a folder": ({"open_clip": None, "encoder": "encoder"}, RecipeError, "vision.c: `encoder` is a folder that holds its weights; leave `weights` out"),
    "unknown architecture": ({"open_clip": "ViT-B-23"}, RecipeError, "vision.c: open_clip has no architecture 'ViT-B-23' (did you mean: ViT-B-32, ViT-S-32, ViT-M-32)"),
    "path as architecture": ({"open_clip": "../plain"}, RecipeError, "vision.c: open_clip has no architecture '../plain' (did you mean: plain)"),
    "unknown tag": ({"open_clip": "ViT-B-32:opnai"}, RecipeError, "vision.c: open_clip has no weights 'opnai' of ViT-B-32 (did you mean: openai)"),
    "tag of another activation": ({"open_clip": "ViT-B-32:openai"}, RecipeError, "vision.c: the weights 'openai' have another activation than ViT-B-32 (write ViT-B-32-quickgelu:openai)"),
    "no such file": ({"weights": "none.safetensors"}, RecipeError, "{}/none.safetensors: there is no such file (`weights` is one safetensors file)"),
    "folder": ({"weights": "folder"}, RecipeError, "{}/folder: is a folder (`weights` is one safetensors file)"),
    "no such projector": ({"projector": "none.safetensors"}, RecipeError, "{}/none.safetensors: there is no such file (`projector` is one safetensors file)"),
    "pickle": ({"weights": "pickle.bin"}, CheckpointError, "{}/pickle.bin: " + PICKLE),
    "pickle by another name": ({"weights": "hidden.safetensors"}, CheckpointError, "{}/hidden.safetensors: " + PICKLE),
    "pickled projector": ({"projector": "pickle.bin"}, CheckpointError, "{}/pickle.bin: " + PICKLE),
    "another architecture": ({"open_clip": "clipa"}, CheckpointError, "{}/clip.safetensors: tensor 'visual.ln_pre.bias' is not one of clipa's"),
    "missing": ({"open_clip": "wide"}, CheckpointError, "{}/clip.safetensors: has no tensor 'visual.transformer.resblocks.0.ls_1.gamma' of wide (6 of 49 are missing)"),
    "timm fetches": ({"open_clip": None, "timm": "hf-hub:a/b"}, RecipeError, "timm: 'hf-hub:a/b' is not the name of an architecture (e.g. vit_small_patch14_dinov2)"),
    "projector as weights": ({"open_clip": None, "timm": "test_vit", "weights": "projector.safetensors", "projector": "clip.safetensors"}, CheckpointError, "{}/clip.safetensors: tensor 'logit_scale' is not of a projector that fuse knows (`0.weight`, `0.bias`, `2.weight` ..., `linear_1.weight` ..., or one `weight`, after `mm_projector.` or nothing)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tiny, case):
    change, kind, told = REFUSED[case]
    with pytest.raises(kind) as error:
        read_encoder(BASE | change, relative_to=tiny)
    assert str(error.value) == told.replace("{}", str(tiny))


def test_the_config_beside_open_clip_weights_rules(tiny):
    prepare = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "longest", "interpolation": "bilinear"}
    told = {"model_cfg": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": {}}, "preprocess_cfg": prepare}
    beside = tiny / "open_clip_config.json"
    beside.write_text(json.dumps(told))
    assert read_encoder(BASE, relative_to=tiny).config["preprocess"] == prepare | {"size": [16, 16]}
    for change, problem in (
        ({"model_cfg": told["model_cfg"] | {"quick_gelu": True}}, "the weights beside it have another activation than plain (write plain-quickgelu)"),
        ({"model_cfg": {"vision_cfg": VIT | {"layers": 4}}}, "the weights beside it are no plain: layers is 4, not 3"),
        ({"model_cfg": None}, "is not {model_cfg, preprocess_cfg}"),
        ({"preprocess_cfg": {"mean": 0.5}}, "preprocess_cfg.mean is 0.5, not three numbers"),
        ({"preprocess_cfg": {"resize_mode": "stretch"}}, "preprocess_cfg asks for 'bicubic', 'stretch', which open_clip does not have"),
    ):  # fmt: skip
        beside.write_text(json.dumps(told | change))
        with pytest.raises(CheckpointError) as error:
            read_encoder(BASE, relative_to=tiny)
        assert str(error.value) == f"{beside}: {problem}"


def test_timm_configs_that_do_not_fit(tiny):
    entry = BASE | {"open_clip": None, "timm": "test_vit"}
    beside = tiny / "config.json"
    for told, problem in (
        ({"architecture": "test_vit2"}, "the weights beside it are a 'test_vit2', not 'test_vit'"),
        ({"architecture": "test_vit", "model_args": {"depth": 2}}, "model_args change the architecture, which fuse does not build"),
        ({"architecture": "test_vit", "pretrained_cfg": {"input_size": 3}}, "input_size is 3, not [3, h, w]"),
    ):  # fmt: skip
        beside.write_text(json.dumps(told))
        with pytest.raises(CheckpointError) as error:
            read_encoder(entry, relative_to=tiny)
        assert str(error.value) == f"{beside}: {problem}"


def test_transformers_folders_that_do_not_fit(tiny):
    entry = {"name": "c", "encoder": "encoder", "projector": "projector.safetensors"}
    config, prepare = tiny / "encoder/config.json", tiny / "encoder/preprocessor_config.json"
    whole = json.loads(config.read_text())

    def refused() -> str:
        with pytest.raises(CheckpointError) as error:
            read_encoder(entry, relative_to=tiny)
        return str(error.value)

    config.write_text(json.dumps(whole | {"model_type": "clap"}))
    assert refused().startswith(
        f"{config}: model_type 'clap' is no image encoder that can be a branch (did you mean: clip"
    )
    config.write_text(json.dumps({k: v for k, v in whole.items() if k != "vision_config"}))
    assert refused() == f"{config}: model_type 'clip' has no vision_config"
    config.write_text(json.dumps(whole | {"vision_config": whole["vision_config"] | {"num_hidden_layers": 4}}))
    assert refused() == f"{config}: num_hidden_layers is 4 but layer 3 is missing"
    config.write_text(json.dumps(whole | {"vision_config": whole["vision_config"] | {"num_hidden_layers": 2}}))
    assert refused() == f"{config}: num_hidden_layers is 2 but there are 3"
    config.write_text(json.dumps(whole))
    prepare.write_text(json.dumps({"crop_size": "large"}))
    assert refused() == f"{prepare}: crop_size is 'large', not a height and a width"
    prepare.unlink()
    assert refused() == (
        f"{tiny}/encoder: holds no preprocessor_config.json, so how it wants images prepared is not known "
        "(copy it from the encoder's own repository)"
    )


@pytest.mark.parametrize(
    ("names", "placed"),
    [
        (("0", "2"), ("0", "2")), (("mm_projector.0", "mm_projector.2"), ("0", "2")),
        (("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"), ("0", "2")),
        (("model.mm_projector.0", "model.mm_projector.2", "model.mm_projector.4"), ("0", "2", "4")), (("linear",), ("0",)),
        (("mm_projector",), ("0",)), (("",), ("0",)),
    ],
)  # fmt: skip
def test_projectors_by_any_name(tiny, names, placed):
    tensors = {
        f"{name}.{kind}".lstrip("."): torch.zeros(*shape)
        for name in names
        for kind, shape in (("weight", (32, 32)), ("bias", (32,)))
    }
    save_file(tensors, tiny / "p.safetensors")
    files = read_encoder(BASE | {"projector": "p.safetensors"}, relative_to=tiny)
    found = {row.entry.name: row.name for row in files.rows if row.entry.file.name == "p.safetensors"}
    assert found == {
        f"{n}.{k}".lstrip("."): f"projector.{i}.{k}"
        for n, i in zip(names, placed, strict=True)
        for k in ("weight", "bias")
    }
    assert files.config["projector"] == [{"in": 32, "out": 32, "bias": True}] * len(names)
    assert files.config["projector_names"] == list(names)
    assert {n for n, _ in EncoderBranch(files.config).projector.named_parameters()} == {
        f"{i}.{k}" for i in placed for k in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"0.weight": (8, 32), "2.weight": (8, 9)}, "tensor '2.weight' takes 9 numbers but the layer before it gives 8"),
        ({"2.weight": (8, 32)}, "has layers 2; one is missing"),
        ({"0.weight": (8, 32), "4.weight": (8, 8)}, "has layers 0, 4; one is missing"),
        ({"0.bias": (8,)}, "tensor '0.bias' has no weight beside it"),
        ({"0.weight": (8, 32, 1)}, "tensor '0.weight' has shape [8, 32, 1], not [out, in]"),
        ({"0.weight": (8, 32), "0.bias": (9,)}, "tensor '0.bias' has shape [9], not [8]"),
        ({"weight": (8, 32), "linear_1.weight": (8, 8)}, "holds layers of two naming styles"),
        ({"weight": (8, 32), "norm.weight": (8,)}, "tensor 'norm.weight' is not of a projector that fuse knows"),
    ],
)  # fmt: skip
def test_projectors_that_are_none(tiny, tensors, problem):
    save_file({name: torch.zeros(*shape) for name, shape in tensors.items()}, tiny / "p.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_encoder(BASE | {"projector": "p.safetensors"}, relative_to=tiny)
    hint = " (`0.weight`, `0.bias`, `2.weight` ..., `linear_1.weight` ..., or one `weight`, after `mm_projector.` or nothing)"
    assert str(error.value).removesuffix(hint) == f"{tiny}/p.safetensors: {problem}"


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_integers_are_refused(tiny, dtype):
    save_file({"0.weight": torch.zeros(8, 32, dtype=dtype)}, tiny / "p.safetensors")
    stored = {torch.int8: "I8", torch.bool: "BOOL"}[dtype]
    with pytest.raises(CheckpointError) as error:
        read_encoder(BASE | {"projector": "p.safetensors"}, relative_to=tiny)
    assert str(error.value) == f"{tiny}/p.safetensors: tensor '0.weight' has dtype {stored}, not floats"
    tensors = load_file(tiny / "clip.safetensors")
    tensors["visual.conv1.weight"] = tensors["visual.conv1.weight"].to(dtype)
    save_file(tensors, tiny / "i.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_encoder(BASE | {"weights": "i.safetensors"}, relative_to=tiny)
    assert str(error.value) == f"{tiny}/i.safetensors: tensor 'visual.conv1.weight' has dtype {stored}, not floats"


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


def test_a_projector_of_another_width_is_one_sentence():
    with pytest.raises(CheckpointError) as error:
        see(EncoderBranch(timm_branch("test_convnext", 65)).eval(), torch.zeros(1, 3, 32, 32))
    assert str(error.value) == (
        "config.json: branches: the projector takes tokens of 65 numbers but the encoder gives 64"
    )
