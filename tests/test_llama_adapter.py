"""LLaMA-Adapter against the authors' numbers, in a LLaMA of transformers with the converted order of channels."""

from typing import Any

import pytest
import torch

from fuse.grafts import llama_adapter_files
from fuse.grafts.llama_adapter import LlamaAdapterGraft
from fuse.grafts.slots import slots_of
from fuse.importers import About, Imported
from fuse.importers.llama_adapter import sort_keys
from tests.official_llama import adapter_keys, block_output, converted
from tests.original_branches import difference, golden

HEADS = 4


def parameters(tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """A golden's parameters under official keys; `prefix` in front of those of its only block."""
    return {prefix + key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")}


def built(found: Imported, **options: Any) -> LlamaAdapterGraft:
    """The graft that a recipe with those options makes of an imported file."""
    assert found.graft is not None
    config = llama_adapter_files.configured(found.graft.config, options)
    graft = LlamaAdapterGraft(config)
    assert {k: tuple(v.shape) for k, v in graft.state_dict().items()} == llama_adapter_files.shapes(config)
    graft.load_state_dict(dict(found.graft.tensors))
    return graft


@pytest.mark.parametrize(("gate", "output"), [("tanh", "with_adapter"), ("tanh_float16", "with_adapter_fp16gate")])
def test_version_1_in_the_training_file(gate: str, output: str) -> None:
    tensors, facts = golden("llama_adapter_v1_block_tanh")
    block = parameters(tensors, "layers.0.")
    model = converted(block, HEADS)
    assert difference(block_output(model, tensors["input.x"]), tensors["output.without_adapter"]) < 5e-6
    prompts = {"adapter_query.weight": tensors["input.adapter"][0]}
    graft = built(sort_keys({**adapter_keys(block), **prompts}, About(options={"gate": gate})))
    slots = slots_of(model)
    graft.attach(slots)
    found = block_output(model, tensors["input.x"])
    assert difference(found, tensors[f"output.{output}"]) <= float(facts["tolerance"])
    slots["language"].remove()
    assert difference(block_output(model, tensors["input.x"]), tensors["output.without_adapter"]) < 5e-6


def test_the_rounding_of_gates_is_not_within_the_tolerance_of_none() -> None:
    """So that the two variants are told apart by the test above."""
    tensors, facts = golden("llama_adapter_v1_block_tanh")
    apart = difference(tensors["output.with_adapter"], tensors["output.with_adapter_fp16gate"])
    assert apart > 2 * float(facts["tolerance"])


def test_version_1_in_the_inference_file_with_its_cache() -> None:
    tensors, facts = golden("llama_adapter_v1_inference")
    official = parameters(tensors)
    model = converted(official, HEADS)
    options = {"length": facts["constructor"]["adapter_len"], "gate": "raw"}
    graft = built(sort_keys(official, About(options=options)))
    assert list(llama_adapter_files.prompted(graft.config)) == [1, 2]
    graft.attach(slots_of(model))
    with torch.no_grad():
        first = model(tensors["input.tokens"], use_cache=True)
        then = model(tensors["input.next_token"], past_key_values=first.past_key_values)
    assert difference(first.logits[:, -1], tensors["output.last_logits"]) <= float(facts["tolerance"])
    assert difference(then.logits[:, -1], tensors["output.next_logits"]) <= float(facts["tolerance"])


@pytest.mark.parametrize("name", ["llama_adapter_v2_block", "llama_adapter_v2_block_plain"])
@pytest.mark.parametrize("which", ["", "_len1"])
def test_version_2_with_prompts_for_each_image(name: str, which: str) -> None:
    tensors, facts = golden(name)
    block = parameters(tensors, "layers.0.")
    model = converted(block, HEADS)
    with torch.no_grad():  # the adapter brings its own norms
        model.model.layers[0].input_layernorm.weight.fill_(0.3)
        model.model.layers[0].post_attention_layernorm.weight.fill_(-2)
    prompts = tensors[f"input.adapter{which}"]
    official = {f"llama.{key}": t for key, t in adapter_keys(block).items()}
    official["adapter_query.weight"] = torch.zeros(prompts.shape[1:])
    about = About(options={"length": prompts.shape[1], "norm_eps": facts["constructor"]["norm_eps"]})
    graft = built(sort_keys(official, about))
    assert bool(graft.config["linears"]) == facts["constructor"]["w_lora"]
    assert graft.config["new_gate"] == facts["constructor"]["w_new_gate"]
    graft.state = {"visual": prompts}
    graft.attach(slots_of(model))
    found = block_output(model, tensors["input.x"])
    assert difference(found, tensors[f"output.with_adapter{which}"]) <= float(facts["tolerance"])


def test_version_2_without_prompts_is_its_biases_norms_and_lora() -> None:
    tensors, facts = golden("llama_adapter_v2_block")
    block = parameters(tensors, "layers.0.")
    model = converted(block, HEADS)
    official = {f"llama.{key}": t for key, t in adapter_keys(block).items()}
    official["adapter_query.weight"] = torch.zeros(5, 32)  # values of 0 add nothing, whatever the gate
    graft = built(sort_keys(official, About(options={"length": 5}, host={"rms_norm_eps": 1e-5})))
    graft.attach(slots_of(model))
    found = block_output(model, tensors["input.x"])
    assert difference(found, tensors["output.without_adapter"]) <= float(facts["tolerance"])
