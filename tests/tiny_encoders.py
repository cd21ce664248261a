"""Tiny image encoders of open_clip, timm and transformers, and a model that is one encoder branch."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import open_clip
import torch
import transformers
from open_clip.model import _build_vision_tower
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel, PretrainedConfig, PreTrainedModel

from fuse.branches import encoder_files
from fuse.branches.encoder import EncoderBranch
from fuse.branches.tower_types import TOWER_TYPES

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


def install(folder: Path) -> Path:
    """An open_clip package's files that also have tiny architectures."""
    package = folder / "open_clip"
    real = Path(open_clip.__file__).parent
    shutil.copytree(real / "model_configs", package / "model_configs")
    for name in ("constants.py", "pretrained.py"):
        shutil.copy(real / name, package / name)
    for name, vision in OPEN_CLIP.items():
        told = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {}}
        (package / "model_configs" / f"{name}.json").write_text(json.dumps(told))
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


def timm_branch(name: str, width: int) -> dict:
    return {
        "library": "timm", "architecture": name, "tower": {"name": name}, "preprocess": {},
        "projector": [{"in": width, "out": HOST, "bias": False}],
    }  # fmt: skip


VIT_CONFIG = {
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
WITH_STAGES = {"convnext": _STAGES, "convnextv2": _STAGES, "dinov3_convnext": _STAGES, "swin": _SWIN, "swinv2": _SWIN}
WITH_STAGES["resnet"] = _STAGES | {"embedding_size": 8}


def write_transformers(kind: str, folder: Path) -> PreTrainedModel:
    size = 64 if kind in WITH_STAGES else 32
    made = CONFIG_MAPPING["mlcd_vision_model" if kind == "mlcd" else kind]
    if TOWER_TYPES[kind].composite:
        config = made(vision_config=VIT_CONFIG, text_config=_TEXT, projection_dim=8)
    else:
        config = made(**WITH_STAGES.get(kind, VIT_CONFIG))
    own = TOWER_TYPES[kind].model
    alone = own and not TOWER_TYPES[kind].composite
    model = randomise(getattr(transformers, own)._from_config(config) if alone else AutoModel.from_config(config))
    model.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text()) | {"model_type": kind}
    (folder / "config.json").write_text(json.dumps(told))
    square = {"height": size, "width": size}
    prepare = {"image_processor_type": "CLIPImageProcessor", "crop_size": square, "size": {"shortest_edge": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare))
    return model
