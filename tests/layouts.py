"""Rewrites tiny checkpoint folders into the layouts that are published, and builds those of other code bases."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Prefixes = Mapping[str, str]  # beginning of a key as transformers 5 saves it -> beginning in another layout

# A: the original LLaVA code. B: Hub files of 2023 and 2024. C: the names in memory. D: as transformers 5 saves them.
LLAVA: dict[str, Prefixes] = {
    "A": {
        "language_model.model.": "model.",
        "language_model.": "",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "image_newline": "model.image_newline",
    },
    "B": {"vision_tower.": "vision_tower.vision_model."},
    "C": {
        "language_model.model.": "model.language_model.",
        "language_model.": "",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
    },
    "D": {},
}
QWEN: dict[str, Prefixes] = {
    "old": {},
    "new": {"model.": "model.language_model.", "visual.": "model.visual."},
}
MM_KEYS = {
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 16,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "use_mm_proj": True,
}


def to_layout(folder: Path, out: Path, layout: str) -> Path:
    """Write a LLaVA folder in layout A, B, C or D, or a Qwen2-VL folder as `old` (flat config) or `new`."""
    config = json.loads((folder / "config.json").read_text())
    table = (QWEN if layout in QWEN else LLAVA)[layout]
    tensors = {renamed(key, table): tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"), dirs_exist_ok=True)
    if layout == "A":
        config = original_config(config)
    elif layout == "old":
        config = {**config.pop("text_config"), **config}
    write(out, config, tensors)
    return out


def renamed(key: str, table: Prefixes) -> str:
    """The key with its longest beginning that the table knows replaced."""
    prefix = max((p for p in table if key.startswith(p)), key=len, default=None)
    return key if prefix is None else table[prefix] + key[len(prefix) :]


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """The flat config of the original LLaVA code for a transformers one."""
    words = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen", "gemma": "Gemma"}
    text = config["text_config"]
    return {
        **text,
        **MM_KEYS,
        "model_type": "llava" if text["model_type"] == "llama" else f"llava_{text['model_type'].rstrip('2')}",
        "architectures": [f"Llava{words[text['model_type']]}ForCausalLM"],
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }


def write(out: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write config.json and model.safetensors."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / "model.safetensors", {"format": "pt"})


# Parts of original checkpoints that transformers has no class for, with their shapes.
MGM_PARTS: dict[str, tuple[int, ...]] = {
    "model.vision_tower_aux.vision_stem.0.weight": (8, 3, 4, 4),
    "model.vision_tower_aux.vision_stem.0.bias": (8,),
    "model.vision_tower_aux.vision_stages.0.blocks.0.gamma": (8,),
    **{
        f"model.vlm_uni_{name}_projector.{n}.{kind}": shape
        for name, width in (("query", 16), ("aux", 24), ("val", 24))
        for n, kind, shape in ((0, "weight", (width,)), (0, "bias", (width,)), (1, "weight", (16, width)), (1, "bias", (16,)))
    },
}
SLIME_PARTS: dict[str, tuple[int, ...]] = {
    "model.sampler.post_qformer.query": (4, 16),
    "model.sampler.post_qformer.pos_embed": (4, 16),
    "model.sampler.post_qformer.attn.in_proj_weight": (48, 16),
    "model.sampler.post_qformer.ln_q.weight": (16,),
    "model.sampler.selector.query": (1, 32),
    "model.sampler.selector.cross_attn.in_proj_weight": (96, 32),
    "model.mm_projector.attn.query": (4, 16),
    "model.mm_projector.attn.attn.out_proj.weight": (16, 16),
    "model.mm_projector.w_gate": (16, 2),
    "model.mm_projector.w_noise": (16, 2),
}
SLIME_BUFFERS = {"model.mm_projector.mean": (1,), "model.mm_projector.std": (1,)}
SLIME_KEYS = {
    "mm_projector_type": "gated",
    "mm_learnable_gated": -1,
    "mm_resampler_type": "qformer",
    "mm_resampler_dim": 4,
    "mm_resampler_topp": 0.5,
    "mm_resampler_temp": 0.2,
    "seperator": 50,
}
INTERNVL_TOWER: dict[str, tuple[int, ...]] = {
    "vision_model.embeddings.class_embedding": (1, 1, 16),
    "vision_model.embeddings.position_embedding": (1, 5, 16),
    **{
        f"vision_model.encoder.layers.{n}.{name}": shape
        for n in range(2)
        for name, shape in (("attn.qkv.weight", (48, 16)), ("attn.proj.weight", (16, 16)), ("ls1", (16,)))
    },
}


def build_original(kind: str, llava: Path, out: Path) -> Path:
    """A tiny `mgm`, `slime` or `internvl_chat` checkpoint around the language model of a transformers folder.

    llava: a LLaVA folder as transformers saves it (an InternVL folder for `internvl_chat`).
    """
    if kind == "internvl_chat":
        return _internvl_chat(llava, out)
    to_layout(llava, out, "A")
    config = json.loads((out / "config.json").read_text())
    tensors = load_file(out / "model.safetensors")
    if kind == "mgm":
        config |= {"model_type": "mgm", "architectures": ["MGMLlamaForCausalLM"], "mm_vision_tower_aux": "convnext-large"}
        tensors |= random(MGM_PARTS)
    else:
        config |= {"model_type": "llava_llama", **SLIME_KEYS}
        moved = {"model.mm_projector.": "model.mm_projector.projection."}
        tensors = {renamed(key, moved): tensor for key, tensor in tensors.items()}
        tensors |= random(SLIME_PARTS | SLIME_BUFFERS)
    write(out, config, tensors)
    return out


def _internvl_chat(folder: Path, out: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    moved = {
        "multi_modal_projector.layer_norm.": "mlp1.0.",
        "multi_modal_projector.linear_1.": "mlp1.1.",
        "multi_modal_projector.linear_2.": "mlp1.3.",
    }
    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("vision_tower.")}
    tensors = {renamed(key, moved): tensor for key, tensor in kept.items()} | random(INTERNVL_TOWER)
    write(out, {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "llm_config": {**config["text_config"], "architectures": ["Qwen2ForCausalLM"]},
        "vision_config": {"model_type": "intern_vit_6b", "hidden_size": 16},
    }, tensors)  # fmt: skip
    return out


def random(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Seeded normal tensors of the given shapes."""
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
