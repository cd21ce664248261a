"""What an encoder's class token looks at, in the layer that is read, averaged over heads (our choice).

A ranking of patch tokens that needs no question, as FasterVLM and VisionZip use it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fuse.branches import tower_types
from fuse.branches.encoder_layers import LAST
from fuse.errors import CheckpointError

Run = Callable[[], torch.Tensor]
Scores = tuple[torch.Tensor, list[torch.Tensor | None]]


def class_attention(config: Mapping[str, Any], tower: Any, run: Run) -> Scores:
    """The patches [B, n, width] that `run` gives, and for each image the class token's attention [n], float32.

    config: the branch's JSON. Raises CheckpointError where the tower has no class token over its patches.
    """
    layer = config.get("layer", LAST)
    if config["library"] == "transformers":
        row = tower_types.TOWER_TYPES[config["tower"]["model_type"]]
        if row.has_class:
            return _transformers(tower, run, tower_types.prefix_tokens(config["tower"]), layer)
    elif hasattr(tower, "resblocks") or hasattr(getattr(tower, "transformer", None), "resblocks"):
        block = tower.transformer.resblocks[layer]
        if isinstance(block.attn, nn.MultiheadAttention):
            return _open_clip(block, run)
    elif getattr(tower, "cls_token", None) is not None and hasattr(tower, "blocks"):
        attention = getattr(tower.blocks[layer], "attn", None)
        if isinstance(getattr(attention, "attn_drop", None), nn.Module) and hasattr(attention, "fused_attn"):
            patches, scores = _timm(attention, run, tower.num_prefix_tokens)
            if scores[0] is not None and len(scores[0]) == patches.shape[1]:  # not so in XCiT, whose channels attend
                return patches, scores
    raise CheckpointError(
        f"the encoder {config['architecture']} has no class token over its patches", where="config.json: branches",
        hint="prune: norm works",
    )  # fmt: skip


def _open_clip(block: Any, run: Run) -> Scores:
    caught: list[torch.Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        patches = run()
    finally:
        handle.remove()
    tokens = block.ln_1(caught[0])
    if not block.attn.batch_first:
        tokens = tokens.transpose(0, 1)
    _, weights = nn.functional.multi_head_attention_forward(
        tokens[:, :1].transpose(0, 1), tokens.transpose(0, 1), tokens.transpose(0, 1), block.attn.embed_dim,
        block.attn.num_heads, block.attn.in_proj_weight, block.attn.in_proj_bias, None, None, False, 0.0,
        block.attn.out_proj.weight, block.attn.out_proj.bias, training=False, need_weights=True,
    )  # fmt: skip
    assert weights is not None
    return patches, list(weights[:, 0, 1:].float())


def _timm(attention: Any, run: Run, prefix: int) -> Scores:
    """timm applies dropout to the attention itself when it does not use a fused kernel; there it can be read."""
    caught: list[torch.Tensor] = []
    handle = attention.attn_drop.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        patches = run()
    finally:
        attention.fused_attn = fused
        handle.remove()
    return patches, list(caught[0].float().mean(1)[:, 0, prefix:])


def _transformers(tower: Any, run: Run, prefix: int, layer: int) -> Scores:
    """Only eager attention gives its weights. The second output of the layer's innermost attention module is read."""
    module = [m for m in tower.modules() if _attends(m) and not any(map(_attends, m.children()))][layer]
    caught: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, args, out: caught.append(out[1]))
    chosen, tower.config._attn_implementation = tower.config._attn_implementation, "eager"
    try:
        patches = run()
    finally:
        tower.config._attn_implementation = chosen
        handle.remove()
    return patches, list(caught[0].float().mean(1)[:, 0, prefix:])


def _attends(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention")
