"""What a slot's function should do to a tiny model, worked out from the model's weights alone (no hooks)."""

from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from fuse.grafts.slots import Slots, slots_of
from tests import tiny_text

SETTINGS: dict[str, dict[str, Any]] = {
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "smollm3": {"no_rope_layers": [1, 0]},
    "t5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
}
HOSTS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3", "gpt2", "opt", "t5"]
STACKS = [*((host, "language") for host in HOSTS if host != "t5"), ("t5", "encoder"), ("t5", "decoder")]
BATCH, LENGTH, WIDTH, HEADS = 2, 7, 32, 4
IDS = torch.randint(3, 60, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])  # padded on the left


def build(host: str, **settings: Any) -> Any:
    """A model in float64 whose norms and biases are random too, so that nothing is forgotten unseen."""
    model = tiny_text.build(host, **{**SETTINGS.get(host, {}), **settings}).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
            elif "embed" not in name:
                parameter.mul_(1 if host == "t5" else 4)  # attention that is not flat
    return model


def inputs(host: str, padded: bool = True) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {"input_ids": IDS}
    if padded:
        found["attention_mask"] = MASK
    if padded and host not in ("opt", "t5"):
        found["position_ids"] = positions()
    if host == "t5":
        found["decoder_input_ids"] = IDS.flip(1)
        found |= {"decoder_attention_mask": MASK} if padded else {}
    return found


def positions() -> torch.Tensor:
    """Of the words [B, L], counted from the first that is no padding."""
    return (MASK.cumsum(1) - 1).clamp_min(0)


def slots(model: Any, stack: str) -> Slots:
    return slots_of(model)[stack]


def blocks(model: Any, stack: str) -> Any:
    """The blocks of a stack and the norm behind them, by the names of transformers."""
    kind = model.config.model_type
    if kind == "t5":
        return getattr(model, stack).block, getattr(model, stack).final_layer_norm
    if kind == "gpt2":
        return model.transformer.h, model.transformer.ln_f
    if kind == "opt":
        return model.model.decoder.layers, model.model.decoder.final_layer_norm
    return model.model.layers, model.model.norm


def parts(model: Any, stack: str, layer: int) -> tuple[Any, Any, Any, Any]:
    """(attention norm, attention, MLP norm, what the MLP's matrices stand in) of a block."""
    block = blocks(model, stack)[0][layer]
    kind = model.config.model_type
    if kind == "t5":
        first, last = block.layer[0], block.layer[-1]
        return first.layer_norm, first.SelfAttention, last.layer_norm, last.DenseReluDense
    if kind == "gpt2":
        return block.ln_1, block.attn, block.ln_2, block.mlp
    if kind == "opt":
        return block.self_attn_layer_norm, block.self_attn, block.final_layer_norm, block
    return block.input_layernorm, block.self_attn, block.post_attention_layernorm, block.mlp


def matrix(model: Any, stack: str, layer: int, which: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(weight [out, in], bias) of a projection: views into the model's own tensors."""
    kind = model.config.model_type
    _, attention, _, mlp = parts(model, stack, layer)
    if kind == "t5":
        name = {"gate": "wi_0", "up": "wi_1", "down": "wo"}.get(which, which)
    elif kind == "opt":
        name = {"up": "fc1", "down": "fc2", "o": "out_proj"}.get(which, f"{which}_proj")
    elif kind == "gpt2":
        name = {"up": "c_fc", "down": "c_proj", "o": "c_proj"}.get(which, "c_attn")
    else:
        name = f"{which}_proj"
    owner = attention if which in "qkvo" else mlp
    if kind == "phi3" and which not in {"o", "down"}:
        fused = attention.qkv_proj if which in "qkv" else mlp.gate_up_proj
        head = model.config.hidden_size // HEADS
        sizes = [HEADS * head, 2 * head, 2 * head] if which in "qkv" else [model.config.intermediate_size] * 2
        part = ("q", "k", "v").index(which) if which in "qkv" else ("gate", "up").index(which)
        return fused.weight.split(sizes)[part], None
    module = getattr(owner, name)
    weight = module.weight.T if kind == "gpt2" else module.weight
    bias = getattr(module, "bias", None)
    if kind == "gpt2" and which in "qkv":
        part = "qkv".index(which)
        return weight.chunk(3)[part], bias.chunk(3)[part]
    return weight, bias


def linears(model: Any) -> list[str]:
    return [
        w
        for w in ("q", "k", "v", "o", "gate", "up", "down")
        if w != "gate" or model.config.model_type not in ("gpt2", "opt")
    ]


def normed(model: Any, stack: str, layer: int | None, which: str, x: torch.Tensor) -> torch.Tensor:
    """A norm in float64, from its weights."""
    norm = (
        blocks(model, stack)[1]
        if which == "final"
        else parts(model, stack, layer or 0)[0 if which == "attention" else 2]
    )
    kind = model.config.model_type
    if kind in ("gpt2", "opt"):
        return nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    eps = norm.eps if kind == "gemma" else norm.variance_epsilon
    rms = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return rms * (1 + norm.weight if kind == "gemma" else norm.weight)


@contextmanager
def spying(module: nn.Module) -> Any:
    """The first argument of every call of a module."""
    calls: list[torch.Tensor] = []
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append((args[0] if args else kwargs["hidden_states"]).detach().clone())
        return own(*args, **kwargs)

    module.forward = forward
    try:
        yield calls
    finally:
        del module.forward


def before_final(model: Any, stack: str, **given: Any) -> torch.Tensor:
    """The residual stream behind the last block [B, L, D]."""
    with spying(blocks(model, stack)[1]) as calls, torch.no_grad():
        model(**given)
    return calls[-1]


def without_mlp(model: Any, stack: str) -> Any:
    """A copy whose last MLP gives 0."""
    copy = deepcopy(model)
    with torch.no_grad():
        weight, bias = matrix(copy, stack, -1, "down")
        weight.zero_()
        if bias is not None:
            bias.zero_()
    return copy


def rotated(model: Any, layer: int, q: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rotary positions in float64 on [B, H, L, d]: pairs (i, i + r/2) of the first r numbers turn."""
    config = model.config
    if config.model_type in ("gpt2", "opt", "t5") or not getattr(config, "no_rope_layers", [1, 1])[layer]:
        return q
    size = int(q.shape[-1] * config.rope_parameters.get("partial_rotary_factor", 1.0))
    rates = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = places[:, None, :, None] * rates  # [B, 1, L, r/2]
    first, second, rest = q[..., : size // 2], q[..., size // 2 : size], q[..., size:]
    turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
    return torch.cat([*turned, rest], -1)


def prefix_attention(
    model: Any, stack: str, layer: int, x: torch.Tensor, prompts: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """What attention to prompts alone gives [B, L, H * d], from what the block's attention is given (behind the norm)."""
    kind, attention = model.config.model_type, parts(model, stack, layer)[1]

    def heads(which: str, given: torch.Tensor) -> torch.Tensor:
        weight, bias = matrix(model, stack, layer, which)
        made = given @ weight.T + (0 if bias is None else bias)
        number = HEADS if which == "q" else made.shape[-1] // size
        return made.reshape(*made.shape[:2], number, size).transpose(1, 2)

    size = matrix(model, stack, layer, "q")[0].shape[0] // HEADS
    q, k, v = heads("q", x), heads("k", prompts), heads("v", prompts)
    if kind == "qwen3":
        for norm, of in ((attention.q_norm, "q"), (attention.k_norm, "k")):
            given = q if of == "q" else k
            made = given * torch.rsqrt(given.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
            q, k = (made, k) if of == "q" else (q, made)
    k, v = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in (k, v))
    q = rotated(model, layer, q, places)
    scores = q @ k.transpose(2, 3) * (1.0 if kind == "t5" else size**-0.5)
    if kind == "gpt2":
        scores = scores / (layer + 1)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
