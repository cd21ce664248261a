"""Native branches: the encoder and projector of any multimodal class of transformers that has `get_image_features`.

The branch is the class's own base model without its language model, so its tensors keep that class's names.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel
from transformers.activations import ACT2FN

from fuse.branches.branch import Inputs, Seen
from fuse.branches.class_attention import class_attention
from fuse.branches.library_names import check_names
from fuse.branches.native_table import NATIVE
from fuse.errors import CheckpointError, in_a_line, short

_LANGUAGE = ("language_model", "text_model")


def build(config: Mapping[str, Any], attention: str | None) -> PreTrainedModel:
    """The base model of the member's class without its language model; works under torch.device("meta").

    config: the member's config.json. Raises CheckpointError for a class that has no row, and where transformers does
    not build it.
    """
    model_type = config.get("model_type")
    if model_type not in NATIVE:
        raise CheckpointError(f"config.json: no native branch for model_type {model_type!r}")
    check_names(config)
    _check_words(config)
    asked = None if attention == "sdpa" else attention  # transformers' default: every part takes it where it can
    try:
        full = CONFIG_MAPPING[model_type].from_dict(_without_language(config))
        model = AutoModel.from_config(
            full, attn_implementation=asked, dtype=torch.get_default_dtype(), trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:  # of any kind: the class takes the numbers as they stand
        raise CheckpointError(f"transformers builds no {model_type} of its config: {in_a_line(error)}") from None
    for name in _LANGUAGE:
        if hasattr(model, name):
            delattr(model, name)
    return model


def _check_words(config: Mapping[str, Any]) -> None:
    """The encoder and the activation of the projector are among those that transformers has."""
    vision = config.get("vision_config")
    encoder = vision.get("model_type") if isinstance(vision, Mapping) else None
    if encoder is not None and encoder not in CONFIG_MAPPING:
        raise CheckpointError(f"config.json: transformers has no encoder {encoder!r} (vision_config.model_type)")
    for key in ("projector_hidden_act", "multimodal_projector_hidden_act"):
        if (word := config.get(key)) is not None and word not in ACT2FN:
            raise CheckpointError(f"config.json: {key} is {short(word)}, which transformers does not have")


def _without_language(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with a language model of one layer and a few tokens: it is built, and thrown away."""
    text = {**config.get("text_config", {}), "num_hidden_layers": 1, "vocab_size": 8}
    for key in ("layer_types", "dtype", "torch_dtype"):
        text.pop(key, None)
    no_ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    outer = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype", "pad_token_id", "layer_types")}
    flat = "text_config" not in config  # the files of 2024: one object for the whole
    if flat:
        return {**outer, **{k: v for k, v in text.items() if k in outer}, **no_ids}
    return {**outer, "text_config": {**text, **no_ids}}


def see(model: Any, inputs: Inputs, *, attention: bool = False, **_: Any) -> list[Seen]:
    """The tokens of every image; images whose inputs have one shape are encoded together."""
    row = NATIVE[model.config.model_type]
    count = len(inputs["pixel_values"])
    names = [name for name in ("pixel_values", *row.inputs) if name in inputs]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in range(count):
        groups.setdefault(tuple(tuple(inputs[name][i].shape) for name in names), []).append(i)
    seen: list[Seen] = [Seen(torch.empty(0))] * count
    for members in groups.values():
        together = {
            name: torch.cat([inputs[name][i] for i in members]) if len(members) > 1 else inputs[name][members[0]]
            for name in names
        }
        run = partial(model.get_image_features, **together, return_dict=True)
        found, scores = class_attention(model, run, row.patches) if attention else (run(), [None] * len(members))
        for i, tokens, score in zip(members, _features(found, len(members)), scores, strict=True):
            seen[i] = Seen(tokens, score)
    return seen


def _features(found: Any, images: int) -> list[torch.Tensor]:
    """What `get_image_features` gives, in any of its forms, as one [n, D] a image."""
    found = getattr(found, "pooler_output", found)
    if isinstance(found, list | tuple) and len(found) == images:
        return [tokens.flatten(0, -2) for tokens in found]
    if isinstance(found, list | tuple):
        found = torch.cat([tokens.flatten(0, -2) for tokens in found])
    return list(found.reshape(images, -1, found.shape[-1]))
