"""The vision tower of an original-LLaVA checkpoint: CLIP's or SigLIP's, read at one hidden state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from fuse.branches.class_attention import attention_of_first
from fuse.branches.llava_config import PLAIN_TOWER, Sight, tower_config
from fuse.errors import CheckpointError


def build_tower(config: Mapping[str, Any]) -> nn.Module:
    """The tower, under the parameter names of transformers. A SigLIP tower is built as LLaVA-NeXT cuts it: without its
    last layer and its head."""
    own = {k: v for k, v in tower_config(config, "vision_tower").items() if k not in ("dtype", "torch_dtype")}
    if own["model_type"] == PLAIN_TOWER:
        cut = {**own, "num_hidden_layers": own["num_hidden_layers"] - 1, "vision_use_head": False}
        return SiglipVisionModel(SiglipVisionConfig.from_dict(cut))
    return CLIPVisionModel(CLIPVisionConfig.from_dict(own))


def look(
    tower: Any, views: torch.Tensor, sight: Sight, attention: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The features of views, and where asked the attention of the class token over each view's patches.

    views: [B, 3, image_size, image_size]. Returns [B, N, width] with N == sight.view_tokens, and [B, side**2].
    Only the layers up to the hidden state that is read are run.
    """
    if attention and not sight.has_class_attention:
        raise no_class_attention()
    hidden = tower.embeddings(views)
    if sight.tower != PLAIN_TOWER:
        hidden = tower.pre_layrnorm(hidden)
    score = None
    for number, layer in enumerate(tower.encoder.layers[: sight.depth], start=1):
        if attention and number == sight.depth:
            score = attention_of_first(layer.layer_norm1(hidden), layer.self_attn)
        hidden = layer(hidden, None)
    drops_class = sight.tower != PLAIN_TOWER and not sight.with_class
    return hidden[:, 1:] if drops_class else hidden, score


def no_class_attention() -> CheckpointError:
    """Tokens of this branch cannot be ranked by the class token's attention."""
    return CheckpointError(
        "this branch has no class token whose attention says which visual tokens matter", hint="prune: norm works"
    )
