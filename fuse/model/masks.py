"""Who sees whom, for hosts whose prompt is not purely causal.

PaliGemma's whole prompt is a prefix that attends in both directions; the tokens of one image do in Gemma 3. Foreign
visual tokens are treated like the host's own. A token's block is a number from 0, or -1 where attention is causal.
"""

from inspect import signature
from typing import Any

import torch
from transformers.masking_utils import create_causal_mask, create_masks_for_generate, sliding_window_overlay

PREFIX_HOSTS = frozenset({"paligemma"})
BLOCK_HOSTS = frozenset({"gemma3"})


def blocks(host_type: str, attention_mask: torch.Tensor, patches: torch.Tensor) -> torch.Tensor | None:
    """The block [B, L] of every prompt token, or None for a causal host.

    patches: [B, L], 0 at words, at visual tokens the number of their image and branch, from 1. Neighbours of one number
    are one block, so that an image that follows another without a word between them stays apart.
    """
    if host_type in PREFIX_HOSTS:
        return torch.where(attention_mask != 0, 0, -1)
    if host_type in BLOCK_HOSTS:
        before = torch.nn.functional.pad(patches, (1, 0))[:, :-1]
        begins = (patches != 0) & (patches != before)
        return torch.where(patches != 0, begins.long().cumsum(-1) - 1, -1)
    return None


def prompt_masks(host_type: str, config: Any, block: torch.Tensor | None, **given: Any) -> Any:
    """The mask, or the masks by layer type, of a forward pass over a whole prompt.

    config: the text config. given: inputs_embeds, attention_mask, past_key_values, position_ids, as transformers'
    `create_causal_mask` takes them.
    """
    if block is None:
        return create_masks_for_generate(config=config, **given)
    if host_type in BLOCK_HOSTS:
        # A sliding layer sees its block inside its window only (the order of Gemma 3's own code).
        length = block.shape[1]

        def same_block(batch: Any, head: Any, query: Any, key: Any) -> Any:
            inside = (query < length) & (key < length)
            mine, other = block[batch, query.clamp(max=length - 1)], block[batch, key.clamp(max=length - 1)]
            return inside & (mine == other) & (mine >= 0)

        window = sliding_window_overlay(config.sliding_window)
        return {
            "full_attention": create_causal_mask(config=config, **given, or_mask_function=same_block),
            "sliding_attention": create_causal_mask(
                config=config, **given, or_mask_function=same_block, and_mask_function=window,
                **_first_sliding_layer(given["past_key_values"]),
            ),
        }  # fmt: skip
    return create_masks_for_generate(config=config, **given, block_sequence_ids=block)


def _first_sliding_layer(cache: Any) -> dict[str, Any]:
    """Which layer's cache a sliding mask is measured by: those of full layers may be longer."""
    if "layer_idx" not in signature(create_causal_mask).parameters:
        return {}  # older releases of transformers measure every mask by one layer
    sliding = getattr(cache, "is_sliding", None) or [False]
    return {"layer_idx": sliding.index(True) if True in sliding else 0}
