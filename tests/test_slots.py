"""Slots of language models: what a function in a slot does is what the model edited by hand does."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fuse.errors import CheckpointError
from fuse.grafts.hosts import slots_in, stacks_of, why_no_slots
from fuse.grafts.slots import slots_of
from fuse.model.language import HeadedModel
from tests import tiny_text
from tests.slot_oracles import (
    BATCH,
    HEADS,
    HOSTS,
    IDS,
    LENGTH,
    STACKS,
    WIDTH,
    before_final,
    blocks,
    build,
    inputs,
    linears,
    matrix,
    normed,
    parts,
    positions,
    prefix_attention,
    slots,
    spying,
    without_mlp,
)

CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}  # norms of transformers compute in float32


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(model: Any, **given: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**given).logits


def same(found: torch.Tensor, wanted: torch.Tensor, other: torch.Tensor) -> None:
    """found is wanted, and the difference to what it would be without the graft is far larger."""
    assert torch.allclose(found, wanted, **CLOSE), (found - wanted).abs().max()
    assert (found - other).abs().max() > 1e-3


def attend(prompts: torch.Tensor, weight: float = 1.0) -> Any:
    """A prefix that attends to prompts with a softmax of its own."""

    def prefix(q: torch.Tensor, keyvalue: Any, scaling: float) -> torch.Tensor:
        k, v = keyvalue(prompts.to(q))
        return weight * (q @ k.transpose(2, 3) * scaling).softmax(-1) @ v

    return prefix


def fill(found: Any, weight: float = 1.0) -> None:
    """Something in every slot; what it does is `weight` times something, so 0 is the identity."""
    for slot in sorted(slots_in(found._stack)):
        kind, _, which = slot.partition(" ")
        for layer in range(found.layers):
            if kind == "norm_output":
                found.norm_output(layer, which, lambda y: y + weight * y.roll(1, -1))
            elif kind == "attention_prefix":
                found.attention_prefix(layer, attend(drawn(1, 3, WIDTH), weight))
            elif which == "final":
                found.norm(None, "final", lambda x, y: y + weight * x.roll(2, -1))
            else:
                where = (layer, which) if which else (layer,)
                getattr(found, kind)(*where, lambda x, y: y + weight * 0.3 * x.mean(-1, keepdim=True).sin())


@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_identities_leave_logits_as_they_are_and_everything_can_be_removed(host: str, stack: str) -> None:
    model = build(host).float()
    plain = logits(model, **inputs(host))
    found = slots(model, stack)
    assert (found.width, found.heads, found.layers) == (WIDTH, HEADS, 3 if stack == "decoder" else 2)
    fill(found, weight=0.0)
    assert torch.equal(logits(model, **inputs(host)), plain)
    fill(found)
    assert not torch.allclose(logits(model, **inputs(host)), plain, atol=1e-2)
    found.remove()
    assert torch.equal(logits(model, **inputs(host)), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_a_linear_takes_a_low_rank_part_as_the_sum_of_matrices_does(host: str, stack: str) -> None:
    model, wanted = build(host), build(host)
    plain, found = logits(model, **inputs(host)), slots(model, stack)
    for number, which in enumerate(linears(model)):
        down, up = drawn(3, matrix(model, stack, 1, which)[0].shape[1], seed=number), None
        up = drawn(matrix(model, stack, 1, which)[0].shape[0], 3, seed=number + 9) * 0.2
        found.linear(1, which, lambda x, y, down=down, up=up: y + x @ down.T @ up.T)
        with torch.no_grad():
            matrix(wanted, stack, 1, which)[0].add_(up @ down)
        if which in ("q", "up"):
            same(logits(model, **inputs(host)), logits(wanted, **inputs(host)), plain)
    same(logits(model, **inputs(host)), logits(wanted, **inputs(host)), plain)


@pytest.mark.parametrize("slot", ["norm", "norm_output"])
@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_a_norm_times_a_vector_is_the_norm_with_another_gain(host: str, stack: str, slot: str) -> None:
    for which in ("attention", "ffn", "final") if slot == "norm" else ("attention", "ffn"):
        model, wanted = build(host), build(host)
        plain, found, gain = logits(model, **inputs(host)), slots(model, stack), 1 + 0.5 * drawn(WIDTH)
        layer = None if which == "final" else 0
        if slot == "norm":
            found.norm(layer, which, lambda x, y, gain=gain: y * gain)
        else:
            found.norm_output(0, which, lambda y, gain=gain: y * gain)
        norm = (
            blocks(wanted, stack)[1] if which == "final" else parts(wanted, stack, 0)[0 if which == "attention" else 2]
        )
        with torch.no_grad():
            norm.weight.copy_((1 + norm.weight) * gain - 1 if host == "gemma" else norm.weight * gain)
            if getattr(norm, "bias", None) is not None:
                norm.bias.mul_(gain)
        same(logits(model, **inputs(host)), logits(wanted, **inputs(host)), plain)


@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_a_norm_is_given_what_it_reads(host: str, stack: str) -> None:
    model, seen = build(host), {}
    found = slots(model, stack)
    for which in ("attention", "ffn", "final"):
        found.norm(None if which == "final" else 1, which, lambda x, y, which=which: seen.setdefault(which, (x, y))[1])
    logits(model, **inputs(host))
    for which, (x, y) in seen.items():
        assert x.shape == y.shape == (BATCH, LENGTH, WIDTH)
        assert torch.allclose(y, normed(model, stack, 1, which, x), **CLOSE), which


@pytest.mark.parametrize("slot", ["ffn", "ffn_residual"])
@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_beside_the_mlp(host: str, stack: str, slot: str) -> None:
    """h + MLP(N(h)) + M(x), x = N(h) for `ffn` and h for `ffn_residual`; h is what a copy without its MLP gives."""
    model, given = build(host), inputs(host)
    plain = before_final(model, stack, **given)
    h = before_final(without_mlp(model, stack), stack, **given)
    down, up = drawn(5, WIDTH), drawn(WIDTH, 5, seed=1) * 0.3
    found = slots(model, stack)
    last = found.layers - 1
    getattr(found, slot)(last, lambda x, y: y + (x @ down.T).sin() @ up.T)
    read = normed(model, stack, last, "ffn", h) if slot == "ffn" else h
    same(before_final(model, stack, **given), plain + (read @ down.T).sin() @ up.T, plain)
    found.remove()
    getattr(found, slot)(last, lambda x, y: 0.25 * y)
    same(before_final(model, stack, **given), h + 0.25 * (plain - h), plain)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_a_prefix_is_attention_to_prompts_by_the_hosts_own_matrices(host: str, stack: str, padded: bool) -> None:
    """The last block without its MLP: x + O(attention + prefix), in float64 from the weights."""
    full, given = build(host), inputs(host, padded)
    model = without_mlp(full, stack)
    places = positions() if padded else torch.arange(LENGTH)[None]
    prompts = drawn(1, 3, WIDTH)
    found = slots(model, stack)
    last = found.layers - 1
    plain = before_final(model, stack, **given)
    with spying(parts(model, stack, last)[1]) as calls, torch.no_grad():
        model(**given)
    prefix = prefix_attention(model, stack, last, calls[-1], prompts, places)
    out = prefix @ matrix(model, stack, last, "o")[0].T
    if stack == "decoder":  # cross-attention reads what self-attention gave: look at its input instead
        block = blocks(model, stack)[0][last]
        plain = _given(block.layer[1], model, given)
        found.attention_prefix(last, attend(prompts))
        same(_given(block.layer[1], model, given), plain + out, plain)
        return
    found.attention_prefix(last, attend(prompts))
    same(before_final(model, stack, **given), plain + out, plain)


def _given(module: nn.Module, model: Any, given: Any) -> torch.Tensor:
    with spying(module) as calls, torch.no_grad():
        model(**given)
    return calls[-1]


@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_a_prefix_gets_the_very_query_that_attention_reads(host: str, stack: str) -> None:
    model, seen, scalings = build(host).float(), [], []
    queries: list[tuple[int, torch.Tensor]] = []

    def spy(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        queries.append((id(module), query))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("spying", spy)
    model.set_attn_implementation("spying")
    found = slots(model, stack)
    found.linear(1, "q", lambda x, y: y + x.mean(-1, keepdim=True))  # another graft's; attached before ...

    def prefix(q: torch.Tensor, keyvalue: Any, scaling: float) -> torch.Tensor:
        seen.append(q)
        scalings.append(scaling)
        return torch.zeros_like(q)

    found.attention_prefix(1, prefix)
    slots(model, stack).linear(1, "q", lambda x, y: 1.5 * y)  # ... and behind
    logits(model, input_ids=IDS, **({"decoder_input_ids": IDS} if host == "t5" else {}))
    (wanted,) = [q for owner, q in queries if owner == id(parts(model, stack, 1)[1])]
    scale = scalings[0] if host == "opt" else 1.0  # OPT scales queries itself
    assert seen[0].shape == wanted.shape
    assert torch.equal(seen[0] * scale, wanted) or (
        host == "opt" and torch.allclose(seen[0] * scale, wanted, atol=1e-6)
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_one_pass_and_steps_with_a_cache_agree(host: str, stack: str, attention: str) -> None:
    equal = (
        {"num_decoder_layers": 2} if host == "t5" else {}
    )  # transformers makes a cache for as many as the encoder has
    model = build(host, **equal).float()  # in float64 a row that is all padding is NaN in eager attention
    model.set_attn_implementation(attention)
    for found in slots_of(model).values() if host == "t5" else [slots(model, stack)]:
        fill(found)
    given = inputs(host)
    whole = logits(model, **given)
    steps, cache, extra = [], None, {}
    if host == "t5":
        extra = {"encoder_outputs": model.encoder(input_ids=IDS, attention_mask=given["attention_mask"])}
    for start, end in ((0, 3), (3, 4), (4, 7)):
        part: dict[str, Any] = {"past_key_values": cache, "use_cache": True, **extra}
        if host == "t5":
            part |= {
                "decoder_input_ids": given["decoder_input_ids"][:, start:end],
                "attention_mask": given["attention_mask"],
            }
            part["decoder_attention_mask"] = given["decoder_attention_mask"][:, :end]
        else:
            part |= {"input_ids": IDS[:, start:end], "attention_mask": given["attention_mask"][:, :end]}
            if "position_ids" in given:
                part["position_ids"] = given["position_ids"][:, start:end]
        with torch.no_grad():
            out = model(**part)
        cache = out.past_key_values
        steps.append(out.logits)
    seen = inputs(host)["attention_mask"].bool() if host != "t5" else given["decoder_attention_mask"].bool()
    found = torch.cat(steps, 1)
    assert (found - whole)[seen].abs().max() < 1e-5 * whole[seen].abs().max()


@pytest.mark.parametrize("host", ["llama", "gpt2", "t5"])
def test_hidden_states_and_generation_go_on_working(host: str) -> None:
    model = build(host, **({"num_decoder_layers": 2} if host == "t5" else {}))
    plain = model(**inputs(host), output_hidden_states=True)
    for found in slots_of(model).values():
        fill(found)
    out = model(**inputs(host), output_hidden_states=True)
    held = "decoder_hidden_states" if host == "t5" else "hidden_states"
    assert len(out[held]) == len(plain[held])
    assert torch.equal(out[held][0], plain[held][0])
    assert not torch.allclose(out[held][1], plain[held][1])
    told = {"input_ids": IDS[1:], "max_new_tokens": 4, "do_sample": False, "num_beams": 2, "pad_token_id": 0}
    cached = model.generate(**told, min_new_tokens=4)
    assert cached.tolist() == model.generate(**told, min_new_tokens=4, use_cache=False).tolist()


def test_several_grafts_share_a_slot_and_leave_one_by_one() -> None:
    model = build("llama")
    plain = before_final(model, "language", **inputs("llama"))
    first, second = slots(model, "language"), slots(model, "language")
    one, two = drawn(WIDTH), drawn(WIDTH, seed=1)
    order: list[str] = []
    first.ffn(1, lambda x, y: order.append("first") or y + one)
    second.ffn_residual(1, lambda h, y: order.append("second") or y + two)
    same(before_final(model, "language", **inputs("llama")), plain + one + two, plain)
    assert order == ["first", "second"]
    first.remove()
    same(before_final(model, "language", **inputs("llama")), plain + two, plain)
    second.remove()
    assert torch.equal(before_final(model, "language", **inputs("llama")), plain)


def test_what_belongs_to_a_norm_comes_before_what_follows_it() -> None:
    model, wanted = build("llama"), build("llama")
    plain, found, bias = logits(model, input_ids=IDS), slots(model, "language"), drawn(WIDTH)
    found.norm_output(0, "attention", lambda y: 2 * y)
    found.norm(0, "attention", lambda x, y: y + bias)
    other = slots(wanted, "language")
    other.norm_output(0, "attention", lambda y: 2 * (y + bias))
    same(logits(model, input_ids=IDS), logits(wanted, input_ids=IDS), plain)


def test_two_prefixes_add_up_and_read_the_same_query() -> None:
    model, wanted, other = build("qwen3"), build("qwen3"), build("qwen3")
    first, second = drawn(1, 3, WIDTH), drawn(1, 2, WIDTH, seed=1)
    for prompts in (first, second):
        slots(model, "language").attention_prefix(0, attend(prompts))

    def both(q: torch.Tensor, keyvalue: Any, scaling: float) -> torch.Tensor:
        return attend(first)(q, keyvalue, scaling) + attend(second)(q, keyvalue, scaling)

    slots(wanted, "language").attention_prefix(0, both)
    slots(other, "language").attention_prefix(0, attend(first))
    same(logits(model, input_ids=IDS), logits(wanted, input_ids=IDS), logits(other, input_ids=IDS))


def test_keys_and_values_of_prompts_are_the_hosts_own_without_what_grafts_add() -> None:
    model, seen = build("llama"), []
    found = slots(model, "language")

    def prefix(q: torch.Tensor, keyvalue: Any, scaling: float) -> torch.Tensor:
        seen.append(keyvalue(drawn(1, 3, WIDTH)))
        return torch.zeros_like(q)

    found.attention_prefix(0, prefix)
    logits(model, input_ids=IDS)
    for which in ("k", "v"):
        found.linear(0, which, lambda x, y: 3 * y)
    logits(model, input_ids=IDS)
    for one, two in zip(*seen, strict=True):
        assert one.shape == (1, HEADS, 3, 8)
        assert torch.equal(one, two)


@pytest.mark.parametrize(("host", "stack"), STACKS)
def test_bfloat16_stays_bfloat16_and_gradients_reach_the_graft(host: str, stack: str) -> None:
    model = build(host).bfloat16()
    found = slots(model, stack)
    factor = torch.ones((), requires_grad=True)  # float32: what a function returns is brought to the host's dtype
    for layer in range(found.layers):
        found.norm_output(layer, "ffn", lambda y: y * factor)
        found.ffn(layer, lambda x, y: y + factor * x)
        found.linear(layer, "v", lambda x, y: y * factor)
        found.attention_prefix(
            layer, lambda q, keyvalue, scaling: factor * keyvalue(q.new_ones(1, 1, WIDTH))[1] + 0 * q
        )
    out = model(**inputs(host)).logits
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    out.float().pow(2).sum().backward()
    assert factor.grad is not None and factor.grad.abs() > 0


def test_weights_that_are_brought_only_for_a_call() -> None:
    """accelerate's offload: parameters are on meta between the calls of their modules."""
    from accelerate import cpu_offload

    for host in ("llama", "phi3", "gpt2"):
        model, offloaded = build(host), build(host)
        cpu_offload(offloaded, execution_device=torch.device("cpu"))
        for one in (model, offloaded):
            fill(slots(one, "language"))
        assert torch.equal(logits(offloaded, input_ids=IDS), logits(model, input_ids=IDS))


@pytest.mark.parametrize("kind", ["qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"])
def test_a_text_model_inside_a_multimodal_class(kind: str) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = tiny_text.INNER_CONFIGS[kind](**{**tiny_text.COMMON, "head_dim": 8, "rope_parameters": rope})
    torch.manual_seed(0)
    model = HeadedModel(config, {"attn_implementation": "sdpa", "dtype": torch.float32}).eval()
    places = torch.arange(LENGTH)[None].expand(BATCH, -1)
    given: dict[str, Any] = {"input_ids": IDS, "position_ids": torch.stack([places, places * 2, places // 2])}
    plain, found = logits(model, **given), slots(model, "language")
    fill(found, 0.0)
    assert torch.equal(logits(model, **given), plain)
    found.remove()
    seen, wanted = [], []
    found.attention_prefix(1, lambda q, keyvalue, scaling: seen.append(q) or torch.zeros_like(q))
    ALL_ATTENTION_FUNCTIONS.register(
        "spying", lambda m, q, *a, **k: wanted.append(q) or ALL_ATTENTION_FUNCTIONS["sdpa"](m, q, *a, **k)
    )
    model.set_attn_implementation("spying")
    logits(model, **given)
    assert torch.equal(seen[0], wanted[1])


def test_a_copy_keeps_its_own_host() -> None:
    model = build("llama")
    copy = deepcopy(model)
    fill(slots(copy, "language"))
    assert not torch.allclose(logits(copy, input_ids=IDS), logits(model, input_ids=IDS))
    assert set(copy.state_dict()) == set(model.state_dict())


REFUSALS = {
    ("gpt2", "language", "linear gate"): "gpt2 has no slot linear gate",
    ("opt", "language", "linear gate"): "opt has no slot linear gate",
    ("llama", "language", "linear qkv"): "llama has no slot linear qkv",
}


@pytest.mark.parametrize(("host", "stack", "slot"), REFUSALS)
def test_a_slot_that_the_host_lacks(host: str, stack: str, slot: str) -> None:
    found = slots(build(host), stack)
    kind, _, which = slot.partition(" ")
    with pytest.raises(CheckpointError) as error:
        getattr(found, kind)(0, which, lambda x, y: y)
    assert str(error.value) == REFUSALS[host, stack, slot]
    assert why_no_slots(build(host).config.to_dict(), [slot]) == REFUSALS[host, stack, slot]


def test_a_plain_t5_has_no_gate() -> None:
    found = slots(tiny_text.build("t5"), "decoder")
    found.linear(0, "up", lambda x, y: y)
    with pytest.raises(CheckpointError) as error:
        found.linear(0, "gate", lambda x, y: y)
    assert str(error.value) == "t5 has no slot linear gate"


@pytest.mark.parametrize("layer", [2, -1, 1.0, None])
def test_a_layer_that_is_not_there(layer: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        slots(build("llama"), "language").ffn(layer, lambda x, y: y)
    assert str(error.value) == f"llama has 2 layers, so there is no layer {layer}"


KNOWN = (
    "(grafts attach to llama, mistral, qwen2, qwen2_vl_text, qwen2_5_vl_text, gemma, smollm3, qwen3, qwen3_vl_text, "
    "phi3, gpt2, opt, t5)"
)
NO_TABLE = {
    "gemma2": "gemma2 has no table of slots, so no graft attaches to it: it has a norm behind attention and one behind "
    "the MLP",
    "gemma3_text": "gemma3_text has no table of slots, so no graft attaches to it: it has a norm behind attention and "
    "one behind the MLP",
    "cohere": "cohere has no table of slots, so no graft attaches to it: its attention and its MLP read one norm",
    "mllama_text_model": "mllama_text_model has no table of slots, so no graft attaches to it: some of its blocks have "
    "cross-attention alone",
}


@pytest.mark.parametrize("kind", NO_TABLE)
def test_an_architecture_without_a_table(kind: str) -> None:
    with pytest.raises(CheckpointError) as error:
        slots_of(tiny_text.build(kind))
    assert str(error.value) == f"{NO_TABLE[kind]} {KNOWN}"
    assert stacks_of({"model_type": kind}) == {}


def test_an_opt_whose_norms_come_behind() -> None:
    with pytest.raises(CheckpointError) as error:
        slots_of(tiny_text.build("opt", do_layer_norm_before=False))
    assert (
        str(error.value) == f"opt with do_layer_norm_before: false has no table of slots: its MLP reads no norm {KNOWN}"
    )


def test_every_host_has_all_slots_but_a_gate() -> None:
    names = {f"linear {which}" for which in ("q", "k", "v", "o", "up", "down")}
    names |= {f"{slot} {which}" for slot in ("norm", "norm_output") for which in ("attention", "ffn")}
    names |= {"ffn", "ffn_residual", "attention_prefix", "norm final"}
    for host in HOSTS:
        assert why_no_slots(build(host).config.to_dict(), names) == ""
