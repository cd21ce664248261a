"""Tiny checkpoint folders in the layouts that are published: renamed from what transformers saves, or made up whole."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# As saved today -> each layout; the longest beginning that fits wins.
LLAVA: dict[str, dict[str, str]] = {
    "A": {
        "language_model.": "",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "image_newline": "model.image_newline",
    },
    "B": {"vision_tower.": "vision_tower.vision_model."},
    "C": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
    },
    "D": {},
}
QWEN2_VL: dict[str, dict[str, str]] = {
    "old": {},
    "new": {"model.": "model.language_model.", "visual.": "model.visual."},
}
TOWER = "openai/clip-vit-large-patch14-336"


def to_layout(folder: Path, out: Path, layout: str) -> Path:
    """Write a saved llava folder in layout A, B, C or D, or a saved qwen2_vl folder in the layout "old" or "new"."""
    shutil.copytree(folder, out)
    tensors = load_file(folder / "model.safetensors")
    names = {**LLAVA, **QWEN2_VL}[layout]
    write_tensors({renamed(key, names): tensor for key, tensor in tensors.items()}, out)
    config = json.loads((folder / "config.json").read_text())
    if layout == "A":
        (out / "processor_config.json").unlink(missing_ok=True)
        write_config(original_config(config), out)
    elif layout == "old":
        write_config(flat_qwen_config(config), out)
    return out


def renamed(key: str, names: Mapping[str, str]) -> str:
    for beginning in sorted(names, key=len, reverse=True):
        if key.startswith(beginning):
            return names[beginning] + key[len(beginning) :]
    return key


def original_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A llava config as the original code writes it."""
    return {
        **config["text_config"],
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        **multimodal_keys(config["vision_config"]["hidden_size"]),
        "mm_vision_select_layer": config.get("vision_feature_layer", -2),
    }


def multimodal_keys(width: int) -> dict[str, Any]:
    """What the original code adds to the language model's config."""
    return {
        "mm_vision_tower": TOWER, "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": width,
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "image_aspect_ratio": "pad",
        "tune_mm_mlp_adapter": False, "use_mm_proj": True,
    }  # fmt: skip


def flat_qwen_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A qwen2_vl config as releases before transformers 4.52 wrote it."""
    text = {k: v for k, v in config["text_config"].items() if k not in ("model_type", "rope_parameters", "dtype")}
    rope = config["text_config"]["rope_parameters"]
    outer = {k: v for k, v in config.items() if k != "text_config"}
    return {
        **text, **outer, "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": {**config["vision_config"], "model_type": "qwen2_vl"},
    }  # fmt: skip


LANGUAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
    "intermediate_size": 48, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "max_position_embeddings": 256,
}  # fmt: skip
TOWER_SHAPES = {
    "embeddings.class_embedding": (16,), "embeddings.patch_embedding.weight": (16, 3, 14, 14),
    "embeddings.position_embedding.weight": (5, 16), "pre_layrnorm.weight": (16,), "post_layernorm.bias": (16,),
    "encoder.layers.0.self_attn.q_proj.weight": (16, 16), "encoder.layers.0.mlp.fc1.weight": (24, 16),
}  # fmt: skip
MLP = {"weight": (32, 16), "bias": (32,)}
NORM_AND_LINEAR = {"0.weight": (16,), "0.bias": (16,), "1.weight": (16, 16), "1.bias": (16,)}


def _under(beginning: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {beginning + name: shape for name, shape in shapes.items()}


PROJECTOR = {
    "model.mm_projector.0.weight": (32, 16), "model.mm_projector.0.bias": (32,),
    "model.mm_projector.2.weight": (32, 32), "model.mm_projector.2.bias": (32,),
}  # fmt: skip
SHARED = {**_under("model.vision_tower.vision_tower.vision_model.", TOWER_SHAPES), **PROJECTOR}

# kind -> (config beyond LANGUAGE, shapes beyond the language model's)
ORIGINAL: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "llava": (
        {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "mm_patch_merge_type": "spatial_unpad"},
        {**SHARED, "model.image_newline": (32,)},
    ),
    "llava, linear": (
        {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_projector_type": "linear"},
        _under("model.mm_projector.", MLP),
    ),
    "mgm": (
        {
            "model_type": "mgm", "architectures": ["MGMLlamaForCausalLM"], "mm_vision_tower_aux": "convnext",
            "mm_hidden_size_aux": 24, "image_size_aux": 56, "image_grid": 1,
        },
        {
            **SHARED,
            "model.vision_tower_aux.vision_stem.0.weight": (24, 3, 4, 4),
            "model.vision_tower_aux.vision_stages.0.blocks.0.conv_dw.weight": (24, 1, 7, 7),
            **_under("model.vlm_uni_query_projector.", NORM_AND_LINEAR),
            **_under("model.vlm_uni_aux_projector.", NORM_AND_LINEAR),
            **_under("model.vlm_uni_val_projector.", NORM_AND_LINEAR),
        },
    ),
    "slime": (
        {
            "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "mm_resampler_type": "qformer",
            "mm_resampler_dim": 4, "mm_resampler_topp": 0.95, "mm_resampler_temp": 0.1, "seperator": 1,
            "mm_projector_type": "gate",
        },
        {
            **_under("model.vision_tower.vision_tower.vision_model.", TOWER_SHAPES),
            **_under("model.mm_projector.projection.0.", MLP),
            **_under("model.mm_projector.projection.2.", {"weight": (32, 32), "bias": (32,)}),
            "model.mm_projector.gate.weight": (2, 32), "model.mm_projector.mean": (2,),
            "model.mm_projector.std": (2,), "model.mm_projector.attn.query": (4, 32),
            "model.sampler.query": (4, 32), "model.sampler.attn.in_proj_weight": (96, 32),
        },
    ),
}  # fmt: skip


def build_original(kind: str, out: Path, seed: int = 0) -> Path:
    """A tiny folder of random tensors in the layout of an original repository: one of ORIGINAL, or "internvl"."""
    config, shapes = internvl() if kind == "internvl" else ORIGINAL[kind]
    if kind == "internvl":
        language = _under("language_model.", llama_shapes(biases=True))
    else:
        config = {**LANGUAGE, **multimodal_keys(16), **config}
        language = llama_shapes()
    generator = torch.Generator().manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    write_config(config, out)
    write_tensors({k: torch.randn(s, generator=generator) * 0.05 for k, s in {**language, **shapes}.items()}, out)
    return out


def internvl() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Config and shapes of an InternVL in its authors' layout, beyond the language model."""
    config = {
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5,
        "llm_config": {**LANGUAGE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        "vision_config": {"model_type": "intern_vit_6b", "hidden_size": 16, "num_hidden_layers": 1},
    }  # fmt: skip
    shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, 16),
        "vision_model.embeddings.patch_embedding.weight": (16, 3, 14, 14),
        "vision_model.encoder.layers.0.attn.qkv.weight": (48, 16), "vision_model.encoder.layers.0.ls1": (16,),
        "mlp1.0.weight": (64,), "mlp1.0.bias": (64,), "mlp1.1.weight": (32, 64), "mlp1.1.bias": (32,),
        "mlp1.3.weight": (32, 32), "mlp1.3.bias": (32,),
    }  # fmt: skip
    return config, shapes


def llama_shapes(biases: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor of the language model that LANGUAGE describes; with Qwen2's biases if asked."""
    layer = {
        "self_attn.q_proj.weight": (32, 32), "self_attn.k_proj.weight": (16, 32), "self_attn.v_proj.weight": (16, 32),
        "self_attn.o_proj.weight": (32, 32), "mlp.gate_proj.weight": (48, 32), "mlp.up_proj.weight": (48, 32),
        "mlp.down_proj.weight": (32, 48), "input_layernorm.weight": (32,), "post_attention_layernorm.weight": (32,),
    }  # fmt: skip
    if biases:
        layer |= {"self_attn.q_proj.bias": (32,), "self_attn.k_proj.bias": (16,), "self_attn.v_proj.bias": (16,)}
    outer = {"model.embed_tokens.weight": (96, 32), "model.norm.weight": (32,), "lm_head.weight": (96, 32)}
    return {**outer, **_under("model.layers.0.", layer), **_under("model.layers.1.", layer)}


def write_tensors(tensors: Mapping[str, torch.Tensor], out: Path) -> None:
    save_file({k: t.contiguous() for k, t in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})


def write_config(config: Mapping[str, Any], out: Path) -> None:
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
