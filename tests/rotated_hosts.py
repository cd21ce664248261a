"""A tiny language model in float64, and the same model in other orthogonal axes: the same function of tokens."""

from typing import Any

import torch
from torch import nn

from tests import tiny_text

WIDTH = 32


def build(kind: str = "llama", seed: int = 0, **settings: Any) -> Any:
    """Random weights and gains. Norms are torch's own, which compute in float64 where transformers' use float32."""
    model = tiny_text.build(kind, **{"tie_word_embeddings": False, **settings}).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)
    _double_norms(model)
    return model


def _double_norms(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm):
            own: Any = module
            other = nn.RMSNorm(own.weight.shape, eps=own.variance_epsilon, dtype=torch.float64)
            other.weight.data.copy_(own.weight)
            model.set_submodule(name, other)


def turn(width: int, seed: int = 1) -> torch.Tensor:
    """An orthogonal matrix [width, width]."""
    return torch.linalg.qr(
        torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )[0]


def turned(kind: str, axes: torch.Tensor, **settings: Any) -> Any:
    """`build` with h' = Q h in its residual stream: gains go into the matrices behind them, which read Q' and write Q.

    Its own gains are 1, so the two models have different norms too.
    """
    model = build(kind, **settings)
    inner = model.model
    with torch.no_grad():
        inner.embed_tokens.weight.copy_(inner.embed_tokens.weight @ axes.T)
        for block in inner.layers:
            readers = (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
            for norm, modules in (
                (block.input_layernorm, readers),
                (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
            ):
                for module in modules:
                    module.weight.copy_(module.weight * norm.weight @ axes.T)
                norm.weight.fill_(1)
            for module in (block.self_attn.o_proj, block.mlp.down_proj):
                module.weight.copy_(axes @ module.weight)
        model.lm_head.weight.copy_(model.lm_head.weight * inner.norm.weight @ axes.T)
        inner.norm.weight.fill_(1)
    return model
