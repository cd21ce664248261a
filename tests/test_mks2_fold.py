"""Folding a memory: the wider MLP gives the logits of host and graft, in every architecture that has slots."""

from typing import Any

import numpy as np
import pytest
import torch

from fuse.grafts.mks2_fold import fold, widened
from fuse.grafts.mks2_wider import folds, why_no_fold, wider
from tests import tiny_text
from tests.test_mks2 import LORA, Watched, basis, donor, grafted, host, logits, memory, silu, tensors_of

# host -> what a memory of its kind is, and the config key of the MLP's size with the host's own value
KINDS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "llama": ({}, "intermediate_size", {}),
    "llama with biases": ({"bias": True}, "intermediate_size", {"mlp_bias": True}),
    "mistral": ({}, "intermediate_size", {}),
    "qwen2": ({}, "intermediate_size", {}),
    "qwen3": ({}, "intermediate_size", {}),
    "gemma": ({"activation": "gelu_tanh"}, "intermediate_size", {}),
    "phi3": ({}, "intermediate_size", {}),
    "gpt2": ({"gated": False, "bias": True, "activation": "gelu_tanh"}, "n_inner", {"n_inner": 128}),
    "gpt2 without biases": ({"gated": False, "activation": "gelu_tanh"}, "n_inner", {"n_inner": 128}),
    "opt": ({"gated": False, "bias": True, "activation": "relu"}, "ffn_dim", {}),
    "t5": ({"gated": False, "activation": "relu"}, "d_ff", {}),
    "gated t5": ({"activation": "gelu_tanh"}, "d_ff", {"feed_forward_proj": "gated-gelu"}),
}


@pytest.mark.parametrize(("router", "scale"), [("additive", 1.0), ("additive", 0.4), ("none", 1.0), ("none", 0.4)])
@pytest.mark.parametrize("name", list(KINDS))
def test_folded_is_what_grafted_was(name: str, router: str, scale: float) -> None:
    """One block has no memory: it gets units of zeros."""
    changes, key, settings = KINDS[name]
    kind = "t5" if name == "gated t5" else name.partition(" ")[0]
    model = host(kind, **settings)
    for key_, weight in model.named_parameters():  # biases of fresh models are zeros
        if key_.endswith("bias"):
            weight.data += torch.linspace(-0.2, 0.3, weight.numel(), dtype=torch.float64)
    config = donor(router=router, place="instead" if router == "none" else "beside", layers=[1], **changes)
    tensors, state = tensors_of(config), model.state_dict()
    with_graft = Watched(model, grafted(config, tensors, scale)).logits
    assert (with_graft - logits(model)).abs().max() > 1e-3
    assert why_no_fold(config, basis(model), state) == ""
    for tensor_name, wide in folds(config, basis(model), scale, state).items():
        assert tensor_name in state
        state[tensor_name] = fold(state[tensor_name], wide, tensors)
    made = tiny_text.build(kind, **{**settings, key: wider(config, basis(model))}).double()
    made.load_state_dict(state)
    torch.testing.assert_close(logits(made), with_graft, rtol=0, atol=1e-11)


def test_a_router_that_does_not_look_folds_too() -> None:
    config = donor(router="softmax", place="instead")
    tensors, model = tensors_of(config), host("llama")
    state = model.state_dict()
    for number in (0, 1):
        tensors[f"layers.{number}.router.weight"].zero_()
    with_graft = Watched(model, grafted(config, tensors, 0.7)).logits
    for name, wide in folds(config, basis(model), 0.7, state).items():
        state[name] = fold(state[name], wide, tensors)
    made = host("llama", intermediate_size=60)
    made.load_state_dict(state)
    torch.testing.assert_close(logits(made), with_graft, rtol=0, atol=1e-11)
    tensors["layers.1.router.weight"][0, 3] = 1e-3
    wide = folds(config, basis(model), 0.7, state)["model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(ValueError, match=r"^the router of block 1 looks at the token, so that its share is not const"):
        fold(model.state_dict()["model.layers.1.mlp.down_proj.weight"], wide, tensors)


def test_one_mlp_against_numpy() -> None:
    config = donor(layers=[0])
    t = {name.removeprefix("layers.0."): tensor for name, tensor in tensors_of(config).items()}
    mlp = {name: torch.randn(shape, dtype=torch.float64) for name, shape in
           (("up.weight", (7, 32)), ("gate.weight", (7, 32)), ("down.weight", (32, 7)))}  # fmt: skip
    made = widened(mlp, t, alpha=0.3, beta=0.9)
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {
        "up.weight": (19, 32), "gate.weight": (19, 32), "down.weight": (32, 19),
    }  # fmt: skip
    x = np.random.default_rng(0).normal(size=(5, 32))
    got, host_, mine = (
        memory({f"layers.0.{name}": tensor.numpy() for name, tensor in one.items()}, 0, x) for one in (made, mlp, t)
    )
    np.testing.assert_allclose(got, 0.9 * host_ + 0.3 * mine, rtol=1e-11)
    assert silu(np.zeros(1)) == 0  # units of zeros say nothing


def test_bfloat16_is_rounded_once() -> None:
    wide = folds(donor(layers=[0, 1]), basis(host("llama")), 0.3, set())["model.layers.0.mlp.down_proj.weight"]
    weight, tensors = torch.randn(32, 48).bfloat16(), {"layers.0.down.weight": torch.randn(32, 12).bfloat16()}
    made = fold(weight, wide, tensors)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made[:, :48], weight)
    assert torch.equal(made[:, 48:], (0.3 * tensors["layers.0.down.weight"].float()).bfloat16())


REASONS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"router": "token_type"}, "has router token_type, whose shares differ from token to token"),
    ("llama", {"router": "arrow"}, "has router arrow, whose shares differ from token to token"),
    ("llama", {"norm": "rms"}, "has norms of its own, and the host's MLP reads behind the host's"),
    ("llama", {"router": "softmax", "lora": LORA}, "has low-rank changes of both experts, which are not folded"),
    ("llama", {"activation": "gelu"}, "has activation gelu, and the host's MLP has silu"),
    ("gemma", {}, "has activation silu, and the host's MLP has gelu_pytorch_tanh"),
    ("gpt2", {"activation": "gelu_tanh"}, "is gated, and the host's MLP is not"),
    ("llama", {"gated": False}, "is not gated, and the host's MLP is"),
    ("llama", {"bias": True}, "has biases, and the host's MLP has none"),
]


@pytest.mark.parametrize(("kind", "changes", "told"), REASONS)
def test_what_does_not_fold(kind: str, changes: dict[str, Any], told: str) -> None:
    model = host(kind)
    assert why_no_fold(donor(**changes), basis(model), model.state_dict()) == told
