"""MKS2's memory in the MLP's slot: every router against float64 numpy, low-rank changes, norms of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fuse import families
from fuse.errors import CheckpointError
from fuse.families import Basis
from fuse.grafts import mks2_files
from fuse.grafts.kinds import build_graft
from fuse.grafts.mks2 import Mks2Graft
from fuse.grafts.slots import slots_of
from tests import tiny_text

HOSTS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt2", "opt", "t5")
IDS = torch.tensor([[5, 9, 33, 12, 7, 61], [8, 8, 40, 3, 21, 6]])
LORA = {"memory": 3, "mlp": 2, "alpha": 6, "mlp_size": 48, "mlp_gated": True}


def donor(**changes: Any) -> dict[str, Any]:
    """A memory of 12 units in both blocks of the tiny hosts."""
    plain = {
        "hidden_size": 32, "inner_size": 12, "layers": [0, 1], "activation": "silu", "gated": True, "bias": False,
        "norm": "host", "place": "beside", "router": "additive",
    }  # fmt: skip
    return plain | changes


def tensors_of(config: Mapping[str, Any], seed: int = 1, size: float = 0.5) -> dict[str, torch.Tensor]:
    """Random float64 tensors of every name that the config promises."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * size
        for name, shape in mks2_files.shapes(config).items()
    }


def grafted(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], scale: float = 1.0) -> Mks2Graft:
    graft = build_graft({"name": "memory", "kind": "mks2", "config": config}).double()
    graft.load_state_dict(tensors)
    graft.scale = scale
    return graft


def host(kind: str, **settings: Any) -> Any:
    return tiny_text.build(kind, **settings).double()


def basis(model: Any) -> Basis:
    config = model.config.to_dict()
    return families.basis_of(config, families.family_of(config, "here"), "here")


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    extra = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


class Watched:
    """A host with a graft, and what goes in and comes out of the MLP of its first stack's blocks, as numpy."""

    def __init__(self, model: Any, graft: Mks2Graft, ids: torch.Tensor = IDS, residual: bool = False) -> None:
        stack = next(iter(slots_of(model).values()))
        look = stack.ffn_residual if residual else stack.ffn
        self.x, self.y, self.out = {}, {}, {}
        for number in range(stack.layers):
            look(number, self._keep(number, self.y))
        slots = slots_of(model)
        graft.attach(slots)
        for number in range(stack.layers):
            look(number, self._keep(number, self.out))
        self.logits = logits(model, ids)
        for one in (stack, *slots.values()):
            one.remove()

    def _keep(self, number: int, kept: dict[int, np.ndarray]) -> Any:
        def look(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            self.x[number], kept[number] = x.numpy().copy(), y.numpy().copy()
            return y

        return look


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def memory(t: Mapping[str, np.ndarray], number: int, x: np.ndarray) -> np.ndarray:
    """down(silu(gate x) * up x), written out."""
    up, gate, down = (t[f"layers.{number}.{name}.weight"] for name in ("up", "gate", "down"))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def softmax(scores: np.ndarray) -> np.ndarray:
    wide = np.exp(scores - scores.max(-1, keepdims=True))
    return wide / wide.sum(-1, keepdims=True)


def expected(config: Mapping[str, Any], t: Mapping[str, np.ndarray], number: int, x: Any, y: Any, scale: float) -> Any:
    """The formulas of the paper and of ours, each written as its source has it."""
    m, router = memory(t, number, x), config["router"]
    if router == "additive":
        return y + scale * m
    if router == "none":
        return (1 - scale) * y + scale * m
    name = "router" if router == "softmax" else "rows"
    scores = x @ t[f"layers.{number}.{name}.weight"].T + t.get(f"layers.{number}.{name}.bias", 0)
    scores = np.abs(scores) if router == "arrow" else scores
    s = softmax(scores / config.get("temperature", 1.0))
    mixed = s[..., :1] * m + s[..., 1:] * y if config["place"] == "instead" else y + s[..., :1] * m
    return y + scale * (mixed - y)


ROUTERS = [
    ({"router": "additive"}, {}),
    ({"router": "none", "place": "instead"}, {}),
    ({"router": "softmax", "place": "instead"}, {}),
    ({"router": "prompts", "place": "instead", "temperature": 0.3}, {}),
    ({"router": "prompts", "place": "beside"}, {}),
    ({"router": "arrow", "place": "instead", "temperature": 2.0}, {}),
    ({"router": "arrow", "place": "beside"}, {}),
]


@pytest.mark.parametrize("scale", [1.0, 0.25, -0.5])
@pytest.mark.parametrize(("changes", "settings"), ROUTERS, ids=lambda row: "-".join(map(str, row.values())))
def test_routers_are_their_formulas(changes: dict[str, Any], settings: dict[str, Any], scale: float) -> None:
    config = donor(**changes)
    tensors = tensors_of(config)
    seen = Watched(host("llama", **settings), grafted(config, tensors, scale))
    plain = {name: tensor.numpy() for name, tensor in tensors.items()}
    for number in (0, 1):
        wanted = expected(config, plain, number, seen.x[number], seen.y[number], scale)
        np.testing.assert_allclose(seen.out[number], wanted, rtol=1e-11, atol=1e-13)
        assert np.abs(seen.out[number] - seen.y[number]).max() > 1e-3


@pytest.mark.parametrize("kind", HOSTS)
def test_every_host(kind: str) -> None:
    """Attached it is heard, in every block that has one and in no other; taken off the host is what it was, bit by bit."""
    model = host(kind)
    before = logits(model)
    blocks = mks2_files.blocks_of(basis(model))
    assert len(blocks) == (5 if kind == "t5" else 2)
    config = donor(layers=[1, len(blocks) - 1] if kind == "t5" else [1])
    tensors = tensors_of(config, size=0.2)
    assert mks2_files.why_not(config, basis(model)) == ""
    seen = Watched(model, grafted(config, tensors))
    np.testing.assert_array_equal(seen.out[0], seen.y[0])
    plain = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.testing.assert_allclose(seen.out[1], seen.y[1] + memory(plain, 1, seen.x[1]), rtol=1e-10, atol=1e-12)
    assert (seen.logits - before).abs().max() > 1e-4
    assert torch.equal(logits(model), before)


def test_encoder_and_decoder_are_numbered_one_after_another() -> None:
    """A memory in T5's last block alone changes the decoder; the encoder gives what it gave."""
    model = host("t5")
    config = donor(layers=[4])
    before = model.get_encoder()(input_ids=IDS).last_hidden_state
    slots = slots_of(model)
    plain = logits(model)
    grafted(config, tensors_of(config)).attach(slots)
    assert torch.equal(model.get_encoder()(input_ids=IDS).last_hidden_state, before)
    assert (logits(model) - plain).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "norm"), [("llama", "rms"), ("gpt2", "layer")])
def test_a_norm_of_its_own(kind: str, norm: str) -> None:
    """With the weights of the host's norm it reads what the MLP reads; with others it is another function."""
    model = host(kind)
    for name, weight in model.named_parameters():
        if "ln_2" in name or "post_attention" in name:
            weight.data += torch.linspace(-0.5, 0.5, 32, dtype=torch.float64)
    stack = slots_of(model)["language"]
    eps = 1e-6 if kind == "llama" else 1e-5
    shared = donor()
    tensors = tensors_of(shared)
    own = donor(norm=norm, norm_eps=eps)
    path = "post_attention_layernorm" if kind == "llama" else "ln_2"
    for number in (0, 1):
        module = stack._blocks[number].get_submodule(path)
        for name, value in module.named_parameters():
            tensors[f"layers.{number}.norm.{name}"] = value.data.clone()
    assert tensors.keys() == mks2_files.shapes(own).keys()
    behind = {name: tensor for name, tensor in tensors.items() if ".norm." not in name}
    theirs = Watched(model, grafted(shared, behind))
    mine = Watched(model, grafted(own, tensors), residual=True)
    exact = 1e-6 if kind == "llama" else 1e-11  # the host computes its RMSNorm in float32
    np.testing.assert_allclose(mine.logits.numpy(), theirs.logits.numpy(), rtol=0, atol=exact)
    tensors["layers.1.norm.weight"] *= 1.5
    assert (Watched(model, grafted(own, tensors)).logits - theirs.logits).abs().max() > 1e-4


def test_activations_biases_and_no_gate() -> None:
    formulas = {
        "silu": silu,
        "relu": lambda x: np.maximum(x, 0),
        "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
        "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "gelu": lambda x: 0.5 * x * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2))),
    }
    assert set(formulas) == set(mks2_files.ACTIVATIONS)
    model = host("gpt2")
    for name, formula in formulas.items():
        config = donor(activation=name, gated=False, bias=True, layers=[0])
        tensors = tensors_of(config)
        seen = Watched(model, grafted(config, tensors, 0.5))
        t = {key.removeprefix("layers.0."): tensor.numpy() for key, tensor in tensors.items()}
        inner = formula(seen.x[0] @ t["up.weight"].T + t["up.bias"])
        wanted = seen.y[0] + 0.5 * (inner @ t["down.weight"].T + t["down.bias"])
        np.testing.assert_allclose(seen.out[0], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_low_rank_changes_of_both_experts(scale: float) -> None:
    """The mixture of LoRA-MVM and LoRA-MLP is that of a memory and a host into which the changes were added."""
    config = donor(router="softmax", place="instead", lora=LORA)
    tensors = tensors_of(config, size=0.3)
    got = Watched(host("llama"), grafted(config, tensors, scale)).logits
    model, bare = host("llama"), {}
    for name, tensor in tensors.items():
        number, _, rest = name.removeprefix("layers.").partition(".")
        if "_lora." in rest:
            continue
        change = f"layers.{number}.memory_lora.{rest.partition('.')[0]}"
        low = tensors.get(f"{change}.down")
        bare[name] = tensor if low is None else tensor + 6 / 3 * tensors[f"{change}.up"] @ low
    for number in (0, 1):
        for name in ("up", "gate", "down"):
            change = f"layers.{number}.mlp_lora.{name}"
            weight = model.get_parameter(f"model.layers.{number}.mlp.{name}_proj.weight")
            weight.data += scale * 6 / 2 * tensors[f"{change}.up"] @ tensors[f"{change}.down"]
    wanted = Watched(model, grafted(donor(router="softmax", place="instead"), bare, scale)).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    assert (got - logits(host("llama"))).abs().max() > 1e-3


def test_a_softmax_of_two_is_not_inert_with_a_finite_bias() -> None:
    """The shares that are known of it, and a hard mask, which leaves every logit as it is."""
    config = donor(router="softmax", place="instead")
    tensors = tensors_of(config)
    model = host("llama")
    before = logits(model)
    for b, share in ((5.0, 6.69e-3), (10.0, 4.54e-5), (20.0, 2.06e-9)):
        for number in (0, 1):
            tensors[f"layers.{number}.router.weight"] = torch.zeros(2, 32, dtype=torch.float64)
            tensors[f"layers.{number}.router.bias"] = torch.tensor([0.0, b], dtype=torch.float64)
        seen = Watched(model, grafted(config, tensors))
        plain = {name: tensor.numpy() for name, tensor in tensors.items()}
        found = (seen.out[0] - seen.y[0]) / (memory(plain, 0, seen.x[0]) - seen.y[0])
        np.testing.assert_allclose(found, share, rtol=1e-2 if b < 20 else 0.5)
        assert not torch.equal(seen.logits, before)
    for number in (0, 1):
        tensors[f"layers.{number}.router.bias"] = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)
    assert torch.equal(Watched(model, grafted(config, tensors)).logits, before)


def test_shares_are_computed_in_float32_for_bfloat16() -> None:
    config = donor(router="softmax", place="instead")
    tensors = tensors_of(config)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    graft = grafted(config, tensors).bfloat16()
    m, share = graft.layers["0"](x)
    assert m.dtype == share.dtype == torch.bfloat16
    scores = graft.layers["0"].router(x).float()
    assert torch.equal(share, scores.softmax(-1)[..., :1].bfloat16())


def test_two_memories_add_up() -> None:
    config, model = donor(), host("llama")
    first, second = tensors_of(config, 1), tensors_of(config, 2)
    slots = [slots_of(model), slots_of(model)]
    stack = slots_of(model)["language"]
    kept: dict[str, np.ndarray] = {}
    stack.ffn(0, lambda x, y: kept.update(x=x.numpy().copy(), y=y.numpy().copy()) or y)
    grafted(config, first).attach(slots[0])
    grafted(config, second, 0.5).attach(slots[1])
    stack.ffn(0, lambda _, y: kept.update(out=y.numpy().copy()) or y)
    logits(model)
    one, two = ({k: v.numpy() for k, v in t.items()} for t in (first, second))
    wanted = kept["y"] + memory(one, 0, kept["x"]) + 0.5 * memory(two, 0, kept["x"])
    np.testing.assert_allclose(kept["out"], wanted, rtol=1e-11, atol=1e-13)


def test_a_config_that_describes_no_memory() -> None:
    with pytest.raises(CheckpointError) as error:
        build_graft({"name": "memory", "kind": "mks2", "config": donor(activation="swish")})
    known = "silu, gelu, gelu_tanh, quick_gelu, relu"
    assert str(error.value) == f"config.json: grafts: activation is 'swish', not one of {known}"
