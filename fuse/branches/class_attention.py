"""How much the encoder's class token looks at each patch: a ranking of visual tokens that needs no question.

Used for pruning as in FasterVLM and VisionZip; here the attention of the layer whose output is selected, averaged over
heads (our choice).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fuse.branches.class_token import reads_class_tower
from fuse.errors import RecipeError


def class_attention(model: Any, run: Callable[[], Any], patches: bool) -> tuple[Any, torch.Tensor]:
    """What `run` gives, and from the same pass the class token's attention [images, patches] in the selected layer.

    model: a base model with a CLIP-like `vision_tower` and a config with vision_feature_layer. run: runs the tower
    once. patches: whether visual tokens are patches one to one. Raises RecipeError where they are not, or where no
    class token looks at them.
    """
    if not patches or not reads_class_tower(model.config.to_dict()):
        raise RecipeError(
            f"a {model.config.model_type} branch has no class token over its visual tokens", hint="prune: norm works"
        )
    layer, tower = model.config.vision_feature_layer, model.vision_tower
    layers = getattr(tower, "vision_model", tower).encoder.layers
    number = (layer if layer >= 0 else len(layers) + 1 + layer) - 1
    caught: list[torch.Tensor] = []
    block = layers[number].self_attn

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        found = run()
    finally:
        handle.remove()
    (hidden,) = caught
    return found, attention_of_first(hidden, block)


def attention_of_first(hidden: torch.Tensor, block: Any) -> torch.Tensor:
    """Attention [B, L-1] of token 0 over the others, averaged over heads. hidden: [B, L, D], the block's input."""
    batch, length, width = hidden.shape
    heads = block.num_heads
    query = block.q_proj(hidden[:, :1]).view(batch, 1, heads, width // heads).transpose(1, 2)
    key = block.k_proj(hidden).view(batch, length, heads, width // heads).transpose(1, 2)
    scores = (query @ key.transpose(-1, -2)) * (width // heads) ** -0.5
    return scores.float().softmax(-1).mean(1)[:, 0, 1:]
