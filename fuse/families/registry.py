"""Which file of this room holds which model_type. Modules are imported on demand, from these two closed lists only."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from fuse.errors import CheckpointError
from fuse.families.family import Family, TextFamily

# model_type of a multimodal checkpoint -> module in fuse/families
FAMILIES: dict[str, str] = {
    "llava": "llava",
    "llava_next": "llava_next",
    "llava_onevision": "llava_onevision",
    "vipllava": "vipllava",
    "internvl": "internvl",
    "internvl_chat": "internvl_chat",
    "idefics2": "idefics2",
    "idefics3": "idefics3",
    "smolvlm": "smolvlm",
    "paligemma": "paligemma",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "mistral3": "mistral3",
    "gemma3": "gemma3",
    "aya_vision": "aya_vision",
    "blip-2": "blip2",
    "instructblip": "instructblip",
    "mllama": "mllama",
}

# model_type of a language model, alone or as the text config of a multimodal one -> module in fuse/families/text
TEXTS: dict[str, str] = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3": "qwen3",
    "qwen3_vl_text": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "smollm3": "smollm3",
    "cohere": "cohere",
    "cohere2": "cohere2",
    "mllama_text_model": "mllama",
    "gpt2": "gpt2",
    "t5": "t5",
    "opt": "opt",
}

# Checkpoints of the original LLaVA code and its offspring; their config.json is the language model's with `mm_` keys.
ORIGINALS: dict[str, str] = {
    "llava": "llava_original",
    "llava_llama": "llava_original",
    "llava_mistral": "llava_original",
    "llava_qwen": "llava_original",
    "mgm": "mgm",
    "mgm_llama": "mgm",
    "mgm_mistral": "mgm",
    "mgm_gemma": "mgm",
}

# What SliME adds to an original LLaVA config; its spelling. LLaVA-NeXT writes mm_resampler_type too, null or pooling.
SLIME_KEYS = ("mm_resampler_dim", "mm_resampler_topp", "mm_resampler_temp", "mm_learnable_gated", "seperator")
SLIME_RESAMPLERS = ("cosine", "qformer")


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family of a checkpoint by its config.json; an unknown or missing model_type is a CheckpointError."""
    model_type = model_type_of(config, where)
    if model_type == "fuse":
        raise CheckpointError(
            "is a fused folder, which cannot be a member", where=where, hint="name the members that its fuse.json lists"
        )
    if model_type in ORIGINALS and ("mm_vision_tower" in config or model_type not in FAMILIES):
        return _original(config, model_type)
    if model_type in FAMILIES:
        return _load(f"fuse.families.{FAMILIES[model_type]}")
    if model_type in TEXTS:
        return _text_only(model_type)
    raise _unknown(model_type, [*FAMILIES, *TEXTS, *ORIGINALS], "a family that fuse knows", where)


def text_module(model_type: str, where: str) -> TextFamily:
    """The table of a language model's tensors, by the model_type of its config."""
    if model_type not in TEXTS:
        raise _unknown(model_type, list(TEXTS), "a language model that fuse knows", where)
    return _load(f"fuse.families.text.{TEXTS[model_type]}")


def model_type_of(config: Mapping[str, Any], where: str) -> str:
    """The config's model_type, which must be there and be a plain word."""
    model_type = config.get("model_type")
    if model_type is None:
        raise CheckpointError(
            "config.json: model_type is missing", where=where, hint="is this a folder that transformers wrote?"
        )
    if not isinstance(model_type, str) or not re.fullmatch(r"[a-z0-9_.-]{1,64}", model_type):
        raise CheckpointError(f"config.json: model_type {str(model_type)[:80]!r} is not a plain word", where=where)
    return model_type


def _original(config: Mapping[str, Any], model_type: str) -> Family:
    module = ORIGINALS[model_type]
    sampled = config.get("mm_resampler_type") in SLIME_RESAMPLERS
    if module == "llava_original" and (sampled or any(config.get(key) is not None for key in SLIME_KEYS)):
        module = "slime"
    return replace(_load(f"fuse.families.{module}"), model_type=model_type)


@cache
def _text_only(model_type: str) -> Family:
    return Family(model_type=model_type, prefixes={"": ("language", "")}, text_type=model_type, vision="")


@cache
def _load(module: str) -> Any:
    return import_module(module).FAMILY


def _unknown(model_type: str, known: list[str], what: str, where: str) -> CheckpointError:
    near = difflib.get_close_matches(model_type, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(set(known)))}"
    return CheckpointError(f"config.json: model_type {model_type!r} is not {what}", where=where, hint=hint)
