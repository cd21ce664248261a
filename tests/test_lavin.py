"""LaVIN's adapters in LLaMA's and CLIP's blocks, against the authors' numbers through the import map."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from fuse.branches.lavin_projector import LavinProjector
from fuse.errors import CheckpointError
from fuse.grafts import lavin_files
from fuse.grafts.graft import Reading, Sight
from fuse.grafts.lavin import LavinGraft, RepAdapter
from fuse.grafts.slots import slots_of
from fuse.importers import About
from fuse.importers.lavin import sort_keys
from tests.original_branches import difference, golden

LAYERS = ["layers.0", "layers.1"]


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Meta's query or key matrix as transformers holds it: halves of a head instead of neighbouring pairs."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def llama(tensors: Mapping[str, torch.Tensor]) -> LlamaForCausalLM:
    """transformers' LLaMA with the golden's blocks."""
    width, inner = tensors["param.layers.0.feed_forward.w2.weight"].shape
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=4, vocab_size=8,
        rms_norm_eps=1e-5, rope_theta=10000.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    names = {
        "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }  # fmt: skip
    state = model.state_dict()
    for layer in LAYERS:
        for old, new in names.items():
            state[f"model.{layer}.{new}.weight"].copy_(tensors[f"param.{layer}.{old}.weight"])
        for old, new in (("wq", "q_proj"), ("wk", "k_proj")):
            weight = permuted(tensors[f"param.{layer}.attention.{old}.weight"], 4)
            state[f"model.{layer}.self_attn.{new}.weight"].copy_(weight)
    return model


def blocks(name: str, **options: Any) -> tuple[LlamaForCausalLM, LavinGraft, dict[str, torch.Tensor], dict[str, Any]]:
    """The golden's LLaMA with the golden's adapters, whose modality tokens are the golden's first tokens."""
    tensors, facts = golden(name)
    adapters = {key: tensor for key, tensor in part(tensors, "param.").items() if ".adapter_" in key}
    adapters["adapter_modality_embedding.weight"] = tensors["input.h"][:, 0]
    imported = sort_keys(adapters, About())
    assert imported.graft is not None and imported.projector is None and not imported.dropped
    graft = LavinGraft(lavin_files.configured(imported.graft.config, options))
    graft.load_state_dict(dict(imported.graft.tensors))
    model = llama(tensors)
    graft.attach(slots_of(model))
    return model, graft, tensors, facts


def reading(model: Any, embeds: torch.Tensor, numbers: torch.Tensor, **more: Any) -> Reading:
    """A prompt of embeddings in front of a language model."""
    ids = torch.zeros(embeds.shape[:2], dtype=torch.long)

    def run(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state

    return Reading(ids, torch.ones_like(ids), numbers, embeds, {}, model.get_input_embeddings(), run, **more)


def words_and_images(rows: int, length: int, sees: list[int]) -> torch.Tensor:
    numbers = torch.zeros(rows, length, dtype=torch.long)
    numbers[sees, 1] = 1
    return numbers


def last_block(model: LlamaForCausalLM) -> list[torch.Tensor]:
    """What the last block gives in every pass from now on."""
    found: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda _, __, out: found.append(out))
    return found


@pytest.mark.parametrize("rounding", ["float16", "none"])
@pytest.mark.parametrize("scope", ["attn", "block"])
@torch.no_grad()
def test_blocks_give_the_authors_numbers(scope: str, rounding: str) -> None:
    model, graft, tensors, facts = blocks(f"lavin_llama_blocks_{scope}", rounding=rounding)
    wanted = tensors["output.h" if rounding == "float16" else "output.h_fp32_route"]
    words, tolerance = tensors["input.h"][:, 1:], float(facts["tolerance"])
    found = last_block(model)
    graft.state = graft.read(reading(model, words, words_and_images(2, 6, [1])))
    assert graft.state["routes"].shape == (2, 2, 2 if scope == "block" else 1, 2)
    model.model(inputs_embeds=words)
    token, rest = found
    assert difference(token, wanted[:, :1]) <= tolerance  # the modality token, which ran alone
    assert difference(rest, wanted[:, 1:]) <= tolerance  # the words, without it in the prompt
    other = tensors["output.h_fp32_route" if rounding == "float16" else "output.h"]
    assert difference(rest, other[:, 1:]) > difference(rest, wanted[:, 1:])


@torch.no_grad()
def test_words_that_follow_keep_the_routes_of_their_prompt() -> None:
    model, graft, tensors, _ = blocks("lavin_llama_blocks_block")
    words = tensors["input.h"][:, 1:]
    graft.state = graft.read(reading(model, words, words_and_images(2, 6, [1])))
    whole = model(inputs_embeds=words).logits
    out = model(inputs_embeds=words[:, :2], use_cache=True)
    steps = [out.logits]
    for column in range(2, 6):
        out = model(inputs_embeds=words[:, column : column + 1], past_key_values=out.past_key_values, use_cache=True)
        steps.append(out.logits)
    assert difference(torch.cat(steps, 1), whole) < 1e-5
    beams = model(inputs_embeds=words.repeat_interleave(3, 0)).logits
    assert difference(beams, whole.repeat_interleave(3, 0)) < 1e-5


@torch.no_grad()
def test_padding_and_neighbours_do_not_move_a_route() -> None:
    model, graft, tensors, _ = blocks("lavin_llama_blocks_attn")
    words = tensors["input.h"][:, 1:]
    graft.state = graft.read(reading(model, words, words_and_images(2, 6, [1])))
    text, image = (graft.state["routes"][row : row + 1] for row in (0, 1))
    assert difference(text, image) > 1e-3
    padded = torch.cat([torch.randn(2, 3, 32), words], 1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 6)], 1).long()
    full = model(inputs_embeds=words).logits
    left = model(inputs_embeds=padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    assert difference(left[:, 3:], full) < 1e-5


@pytest.mark.parametrize(
    ("recipe", "caller", "rows"),
    [("auto", None, [0, 1]), ("image", None, [1, 1]), ("text", None, [0, 0]), ("image", "text", [0, 0]), ("text", "auto", [0, 1])],
)  # fmt: skip
@torch.no_grad()
def test_modality_is_seen_or_said(recipe: str, caller: str | None, rows: list[int]) -> None:
    model, graft, tensors, _ = blocks("lavin_llama_blocks_attn", modality=recipe)
    words = tensors["input.h"][:, 1:]
    options = {} if caller is None else {"modality": caller}
    plain, both, *_ = blocks("lavin_llama_blocks_attn")
    seen = both.read(reading(plain, words, words_and_images(2, 6, [1])))["routes"]
    found = graft.read(reading(model, words, words_and_images(2, 6, [1]), options=options))["routes"]
    assert torch.equal(found, seen[rows])


@torch.no_grad()
def test_an_image_without_tokens_counts() -> None:
    model, graft, tensors, _ = blocks("lavin_llama_blocks_attn")
    words, none = tensors["input.h"][:, 1:], torch.zeros(2, 6, dtype=torch.long)
    sight = Sight(1, torch.zeros(1, 4), torch.zeros(0, 32), torch.zeros(0, dtype=torch.long))
    asked = reading(model, words, none)
    asked.sights = {"clip": [sight]}
    wanted = graft.read(reading(model, words, words_and_images(2, 6, [1])))
    assert torch.equal(graft.read(asked)["routes"], wanted["routes"])


@torch.no_grad()
def test_scale_mixes_the_adapters_in() -> None:
    model, graft, tensors, _ = blocks("lavin_llama_blocks_attn", adapter_scale=2.0)
    words = tensors["input.h"][:, 1:]
    graft.scale = 0.5
    graft.state = graft.read(reading(model, words, words_and_images(2, 6, [1])))
    halved = model(inputs_embeds=words).logits
    model, graft, *_ = blocks("lavin_llama_blocks_attn")
    graft.state = graft.read(reading(model, words, words_and_images(2, 6, [1])))
    assert difference(halved, model(inputs_embeds=words).logits) < 1e-6


def adapter(name: str) -> tuple[RepAdapter, dict[str, torch.Tensor], dict[str, Any]]:
    tensors, facts = golden(name)
    made = facts["constructor"]
    module = RepAdapter(made["in_features"], made["hidden_dim"], made["groups"], routed="router" in name)
    module.load_state_dict(part(tensors, "param."))
    return module, tensors, facts


@torch.no_grad()
def test_a_routed_adapter() -> None:
    module, tensors, facts = adapter("lavin_repadapter_router")
    x, tolerance = tensors["input.x"], float(facts["tolerance"])
    rounded, exact = module.route(x[:, 0], 10.0, True), module.route(x[:, 0], 10.0, False)
    assert torch.equal(rounded.half(), tensors["inter.route_weights_fp16"]) and rounded.dtype == torch.float32
    assert difference(exact, tensors["inter.route_weights_fp32"]) <= tolerance
    for route, output in ((rounded, "y"), (exact, "y_fp32_route"), (tensors["input.given_weights"], "y_given_weights")):
        assert difference(module(x, route[:, None], 1.0), tensors[f"output.{output}"]) <= tolerance


@torch.no_grad()
def test_a_plain_adapter() -> None:
    module, tensors, facts = adapter("lavin_repadapter")
    assert difference(module.path(tensors["input.x"]), tensors["output.y"]) <= float(facts["tolerance"])


@torch.no_grad()
def test_the_projector() -> None:
    tensors, facts = golden("lavin_adapter_mlp")
    made = facts["constructor"]
    config = {"width": made["in_features"], "hidden": made["hidden_dim"], "hidden_size": made["out_features"]}
    module = LavinProjector(config)
    module.load_state_dict(part(tensors, "param."))
    assert difference(module(tensors["input.x"]), tensors["output.y"]) <= float(facts["tolerance"])


def clip(tensors: Mapping[str, torch.Tensor]) -> CLIPVisionModel:
    """transformers' CLIP tower whose only block is the golden's."""
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4,
        layer_norm_eps=1e-5, hidden_act="quick_gelu",
    )  # fmt: skip
    model = CLIPVisionModel(config).eval()
    block = next(module for module in model.modules() if type(module).__name__ == "CLIPEncoderLayer")
    given, state = part(tensors, "param.resblocks.0."), {}
    for which in ("weight", "bias"):
        for name, rows in zip(("q_proj", "k_proj", "v_proj"), given[f"attn.in_proj_{which}"].chunk(3), strict=True):
            state[f"self_attn.{name}.{which}"] = rows
        names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
                 "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
        for old, new in names.items():
            state[f"{new}.{which}"] = given[f"{old}.{which}"]
    block.load_state_dict(state)
    return model


def tower(name: str, **options: Any) -> tuple[nn.Module, dict[str, torch.Tensor], float]:
    """The golden's CLIP block with its adapter, from the keys of a checkpoint."""
    tensors, facts = golden(name)
    given = part(tensors, "param.resblocks.")
    state = {f"backbone.visual.transformer.resblocks.{key}": t for key, t in given.items() if ".adapter_" in key}
    imported = sort_keys(state | language(layers=1), About())
    assert imported.graft is not None
    config = lavin_files.configured(imported.graft.config, {"parts": "tower", **options})
    graft = LavinGraft(config)
    graft.load_state_dict({key: t for key, t in imported.graft.tensors.items() if key.startswith("tower.")})
    model = clip(tensors)
    graft.attach(slots_of(model))
    block = next(module for module in model.modules() if type(module).__name__ == "CLIPEncoderLayer")
    return block, tensors, float(facts["tolerance"])


def language(width: int = 8, layers: int = 2) -> dict[str, torch.Tensor]:
    """The language model's part of a LaVIN checkpoint, of random numbers."""
    config = {"hidden_size": width, "layers": layers, "adapter_dim": 4, "groups": 2, "adapter_type": "attn"}
    return {name: torch.randn(shape) for name, shape in lavin_files.shapes(config).items()}


def through(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[L, B, D] through a block that wants [B, L, D]."""
    out = block(x.transpose(0, 1), attention_mask=None)
    return (out if isinstance(out, torch.Tensor) else out[0]).transpose(0, 1)


@torch.no_grad()
def test_a_plain_adapter_in_clip() -> None:
    block, tensors, tolerance = tower("lavin_clip_block_normal")
    assert difference(through(block, tensors["input.x"]), tensors["output.y"]) <= tolerance


@torch.no_grad()
def test_a_routed_adapter_in_clip_as_the_authors_run_it() -> None:
    """Every image takes the routes of the first one: the authors' adapter reads [tokens, images, width]."""
    block, tensors, tolerance = tower("lavin_clip_block_router", route="official")
    x, wanted = tensors["input.x"], tensors["output.y"]
    assert difference(through(block, x), wanted) <= tolerance
    assert difference(through(block, x[:, :1]), wanted[:, :1]) <= tolerance
    assert difference(through(block, x.flip(1)).flip(1), wanted) > 1e-4  # which one comes first matters


@torch.no_grad()
def test_a_routed_adapter_in_clip_image_by_image() -> None:
    """By default an image does not depend on its neighbours; one alone is what the authors' code gives for one."""
    block, tensors, tolerance = tower("lavin_clip_block_router")
    x, wanted = tensors["input.x"], tensors["output.y"]
    found = through(block, x)
    assert difference(found[:, :1], wanted[:, :1]) <= tolerance
    assert difference(found[:, 1:], wanted[:, 1:]) > 1e-4
    assert difference(through(block, x.flip(1)).flip(1), found) < 1e-6
    official = tower("lavin_clip_block_router", route="official")[0]
    assert difference(through(official, x[:, 1:]), found[:, 1:]) <= tolerance


@torch.no_grad()
def test_a_plain_adapter_is_mixed_with_its_input() -> None:
    tensors, _ = golden("lavin_clip_block_normal")
    module = RepAdapter(16, 8, 2, routed=False)
    module.load_state_dict(part(tensors, "param.resblocks.0.adapter_attn."))
    config = {"hidden_size": 8, "layers": 1, "adapter_dim": 4, "groups": 2, "adapter_type": "attn", "parts": "tower",
              "tower": {"width": 16, "layers": 1, "adapter_dim": 8, "groups": 2, "visual_adapter_type": "normal"}}  # fmt: skip
    graft, x = LavinGraft(config), tensors["input.x"]
    graft.scale = 0.25
    assert difference(graft._by_token(module, x), 0.75 * x + 0.25 * module.path(x)) < 1e-6


def test_another_size_is_refused() -> None:
    tensors, _ = golden("lavin_llama_blocks_attn")
    config = {"hidden_size": 32, "layers": 3, "adapter_dim": 4, "groups": 2, "adapter_type": "attn"}
    with pytest.raises(CheckpointError) as error:
        LavinGraft(config).attach(slots_of(llama(tensors)))
    told = "LaVIN's adapters were made for 3 layers of width 32, and the language model has 2 of width 32"
    assert str(error.value) == told
    with pytest.raises(CheckpointError) as error:
        LavinGraft({**config, "adapter_type": "all"})
    told = (
        "config.json: a graft of kind lavin has a config that cannot be: adapter_type is 'all', not one of attn, block"
    )
    assert str(error.value) == told


@torch.no_grad()
def test_a_pass_without_a_read_prompt_is_the_hosts_own() -> None:
    model, *_ = blocks("lavin_llama_blocks_attn")
    host, ids = llama(golden("lavin_llama_blocks_attn")[0]), torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, host(ids).logits)
