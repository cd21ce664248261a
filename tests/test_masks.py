"""Who sees whom: prefix hosts, block hosts, causal hosts, by hand."""

import numpy as np
import pytest
import torch
from transformers import Gemma3TextConfig, GemmaConfig, LlamaConfig

from fuse.model.masks import blocks, prompt_masks


def dense(mask: torch.Tensor | None, length: int) -> np.ndarray:
    """What an eager mask lets through, [B, L, L] bool."""
    assert mask is not None
    return (mask[:, 0, -length:, :length] == 0).numpy()


def masks(host: str, config, attention: torch.Tensor, visual: torch.Tensor):
    config._attn_implementation = "eager"
    block = blocks(host, attention, visual)
    embeds = torch.zeros(*attention.shape, 8)
    return prompt_masks(
        host, config, block, inputs_embeds=embeds, attention_mask=attention, past_key_values=None, position_ids=None
    )


@pytest.fixture
def prompt() -> tuple[torch.Tensor, torch.Tensor]:
    attention = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1], [1] * 8])
    visual = torch.tensor([[0, 0, 1, 1, 0, 3, 3, 0], [2, 2, 2, 0, 0, 0, 0, 0]])
    return attention, visual


def causal(attention: torch.Tensor) -> np.ndarray:
    length = attention.shape[1]
    return np.tril(np.ones((length, length), dtype=bool)) & attention.bool().numpy()[:, None, :]


def test_a_causal_host_has_no_blocks(prompt) -> None:
    attention, visual = prompt
    assert blocks("llava", attention, visual) is None
    got = dense(masks("llava", LlamaConfig(), attention, visual), 8)
    assert (got[attention.bool().numpy()] == causal(attention)[attention.bool().numpy()]).all()


def test_a_prefix_host_sees_its_whole_prompt(prompt) -> None:
    attention, visual = prompt
    seen = dense(masks("paligemma", GemmaConfig(), attention, visual), 8)
    real = attention.bool().numpy()
    for row in range(2):
        assert (seen[row][real[row]] == real[row]).all()


def test_a_block_host_sees_each_image_both_ways(prompt) -> None:
    attention, visual = prompt
    assert blocks("gemma3", attention, visual).tolist() == [[-1, -1, 0, 0, -1, 1, 1, -1], [0, 0, 0, -1, -1, -1, -1, -1]]
    config = Gemma3TextConfig(
        sliding_window=3, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]
    )
    found = masks("gemma3", config, attention, visual)
    block = blocks("gemma3", attention, visual).numpy()
    same = (block[:, :, None] == block[:, None, :]) & (block[:, :, None] >= 0)
    real = attention.bool().numpy()
    full = (causal(attention) | same) & real[:, None, :]
    distance = np.arange(8)[:, None] - np.arange(8)[None, :]
    assert (dense(found["full_attention"], 8)[real] == full[real]).all()
    assert (dense(found["sliding_attention"], 8)[real] == (full & (distance < 3))[real]).all()


def test_images_without_a_word_between_them_stay_apart() -> None:
    numbers = torch.tensor([[1, 1, 2, 2, 0, 2]])
    assert blocks("gemma3", torch.ones_like(numbers), numbers).tolist() == [[0, 0, 1, 1, -1, 2]]
