"""Watching the attention of a model while it answers, without keeping the square of the prompt.

`generate(output_attentions=True)` keeps [heads, prompt, prompt] for every layer at once: 34 GB for 32 layers of 32
heads over 4096 tokens in bfloat16. Only the last query of each step matters here, so hooks keep that row alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = {"self_attn", "attn", "EncDecAttention"}  # what text models call it: GPT-2, and T5 to its encoder


@contextmanager
def watching(decoder: nn.Module) -> Iterator[list[list[Tensor]]]:
    """A list that fills with what `fuse.report.attention` takes: forward pass -> layer -> [batch, heads, 1, keys].

    decoder: the language model alone (`model.get_decoder()`), so that vision encoders are left out. While
    watched, the language model computes attention the eager way, which is the one that yields weights; afterwards it is
    set back. Tensors are float32 on the CPU. A GPU may run one step more than the answer has tokens: cut
    the list to them.

    with watching(model.get_decoder()) as attentions:
        out = model.generate(**inputs)

    Raises ValueError when no layer of the decoder gave attention weights.
    """
    steps: list[list[Tensor]] = []

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        steps.append([])

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found = [x for x in output[1:] if isinstance(x, Tensor) and x.ndim == 4] if isinstance(output, tuple) else []
        if found and steps:
            steps[-1].append(found[-1][:, :, -1:].detach().to("cpu", torch.float32))

    layers = [layer for name, layer in decoder.named_modules() if name.rpartition(".")[2] in ATTENTION]
    before = decoder.config._attn_implementation  # pyright: ignore
    decoder.set_attn_implementation("eager")  # pyright: ignore
    hooks = [decoder.register_forward_pre_hook(begin, with_kwargs=True)]
    hooks += [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield steps
        if not any(steps):
            raise ValueError(f"no attention weights came from the {len(layers)} attention layers of the language model")
    finally:
        for hook in hooks:
            hook.remove()
        decoder.set_attn_implementation(before)  # pyright: ignore
