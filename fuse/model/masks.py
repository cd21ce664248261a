"""Who sees whom, for hosts whose prompt is not purely causal.

PaliGemma's whole prompt is a prefix that attends in both directions; the tokens of one image do in Gemma 3. Foreign
visual tokens are treated like the host's own. A token's block is a number from 0, or -1 where attention is causal.
"""

from typing import Any

import torch
from transformers.masking_utils import create_causal_mask, create_masks_for_generate, sliding_window_overlay

PREFIX_HOSTS = frozenset({"paligemma"})
BLOCK_HOSTS = frozenset({"gemma3"})


def blocks(host_type: str, attention_mask: torch.Tensor, visual: torch.Tensor) -> torch.Tensor | None:
    """The block [B, L] of every prompt token, or None for a causal host. visual: [B, L], True at visual tokens."""
    if host_type in PREFIX_HOSTS:
        return torch.where(attention_mask != 0, 0, -1)
    if host_type in BLOCK_HOSTS:
        before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        return torch.where(visual, (visual & ~before).long().cumsum(-1) - 1, -1)
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
                config=config, **given, or_mask_function=same_block, and_mask_function=window
            ),
        }
    return create_masks_for_generate(config=config, **given, block_sequence_ids=block)
