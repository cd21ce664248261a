"""LoRA's files: names of projections in every architecture, what PEFT's config may say, and hosts that do not fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fuse import families
from fuse.errors import CheckpointError
from fuse.families import Basis
from fuse.grafts import lora_files
from fuse.grafts.lora_names import parts, place
from fuse.grafts.lora_peft import read_peft
from fuse.importers import About
from fuse.importers.llava_lora import sort_keys
from tests import tiny_text

TOLD: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "init_lora_weights": True, "modules_to_save": None,
    "target_modules": ["q_proj"], "use_dora": False, "task_type": "CAUSAL_LM", "rank_pattern": {}, "megatron_core": "x",
}  # fmt: skip
Q = "base_model.model.model.layers.0.self_attn.q_proj"
PAIR = {f"{Q}.lora_A.weight": (4, 32), f"{Q}.lora_B.weight": (32, 4)}


def donor(*names: str, rank: int = 2, inputs: int = 32, outputs: int = 32) -> dict[str, Any]:
    return {"modules": {name: {"rank": rank, "in": inputs, "out": outputs, "scaling": 1.0} for name in names}}


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("model.layers.3.self_attn.q_proj", ("language", 3, "q")),
        ("model.language_model.layers.3.mlp.gate_proj", ("language", 3, "gate")),
        ("language_model.model.layers.13.mlp.down_proj", ("language", 13, "down")),
        ("layers.0.self_attn.o_proj", ("language", 0, "o")),
        ("model.layers.0.self_attn.qkv_proj", ("language", 0, "qkv")),
        ("model.layers.0.mlp.gate_up_proj", ("language", 0, "gate_up")),
        ("transformer.h.11.attn.c_attn", ("language", 11, "qkv")),
        ("h.1.mlp.c_fc", ("language", 1, "up")),
        ("model.decoder.layers.0.self_attn.out_proj", ("language", 0, "o")),
        ("model.decoder.layers.0.fc2", ("language", 0, "down")),
        ("encoder.block.2.layer.1.DenseReluDense.wi_0", ("encoder", 2, "gate")),
        ("encoder.block.2.layer.1.DenseReluDense.wi", ("encoder", 2, "up")),
        ("decoder.block.2.layer.2.DenseReluDense.wi_1", ("decoder", 2, "up")),
        ("decoder.block.0.layer.0.SelfAttention.k", ("decoder", 0, "k")),
        ("decoder.block.0.layer.1.EncDecAttention.k", None),
        ("model.vision_tower.encoder.layers.3.self_attn.q_proj", None),
        ("vision_model.encoder.layers.3.self_attn.q_proj", None),
        ("model.layers.3.self_attn", None),
        ("lm_head", None),
        ("model.embed_tokens", None),
    ],
)
def test_modules_are_known_by_their_names(module: str, found: tuple[str, int, str] | None) -> None:
    assert place(module) == found


def test_the_parts_of_a_joint_matrix() -> None:
    assert parts("qkv", 32, 64) == {"q": (0, 32), "k": (32, 48), "v": (48, 64)}
    assert parts("gate_up", 32, 96) == {"gate": (0, 48), "up": (48, 96)}
    assert parts("o", 16, 32) == {"o": (0, 32)}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"peft_type": "IA3"}, "adapter_config.json: peft_type is 'IA3', and fuse reads LORA"),
        ({"use_dora": True}, "adapter_config.json: use_dora is True, which is more than LoRA (DoRA rescales whole rows of the base's weights; merge it into its base with PEFT first)"),
        ({"modules_to_save": ["lm_head"]}, "adapter_config.json: modules_to_save is ['lm_head'], which is more than LoRA (those modules are whole weights; name the member that holds them in the recipe)"),
        ({"bias": "all"}, "adapter_config.json: bias is all, which is more than LoRA (train LoRA with bias: none, or merge it into its base with PEFT first)"),
        ({"lora_bias": True}, "adapter_config.json: lora_bias is True, which is more than LoRA (merge it into its base with PEFT first)"),
        ({"layer_replication": [[0, 2]]}, "adapter_config.json: layer_replication is [[0, 2]], which is more than LoRA (merge it into its base with PEFT first)"),
        ({"something_of_tomorrow": 3}, "adapter_config.json: something_of_tomorrow is 3, which is more than LoRA (merge it into its base with PEFT first)"),
        ({"init_lora_weights": "pissa_niter_4"}, "adapter_config.json: init_lora_weights is 'pissa_niter_4', which changes the base's weights (save the adapter converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion))"),
        ({"lora_alpha": None}, "adapter_config.json: the alpha of model.layers.0.self_attn.q_proj is None, not a number below 1,000,000,000"),
        ({"r": 8}, "model.layers.0.self_attn.q_proj has rank 4 and 4, and adapter_config.json says 8"),
        ({"rank_pattern": {"q_.*": 4}}, "adapter_config.json: 'q_.*' of a pattern is not the name of a module (merge it into its base with PEFT first)"),
        ({"alpha_pattern": 3}, "adapter_config.json: alpha_pattern is 3, not a table"),
    ],
)  # fmt: skip
def test_what_peft_says_beyond_lora_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_peft(PAIR, TOLD | told)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no LoRA factors"),
        ({f"{Q}.lora_A.weight": (4, 32)}, "model.layers.0.self_attn.q_proj has lora_A and not the other factor"),
        ({**PAIR, f"{Q}.lora_magnitude_vector": (32,)}, f"tensor '{Q}.lora_magnitude_vector' is no LoRA factor (merge it into its base with PEFT first)"),
        ({**PAIR, "base_model.model.lm_head.lora_A.weight": (4, 32)}, "tensor 'base_model.model.lm_head.lora_A.weight' changes lm_head, which is no projection of a language model's blocks (merge it into its base with PEFT first)"),
        ({**PAIR, f"{Q}.lora_A.default.weight": (4, 32)}, f"tensor '{Q}.lora_A.default.weight' is there twice"),
        ({**PAIR, f"{Q}.lora_B.weight": (32, 4, 1)}, f"tensor '{Q}.lora_B.weight' has shape [32, 4, 1], not two sizes"),
        ({**PAIR, f"{Q}.lora_B.weight": (32, 5)}, "model.layers.0.self_attn.q_proj has rank 4 and 5, and adapter_config.json says 4"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_lora(tensors: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_peft(tensors, TOLD)
    assert str(caught.value) == message


def host(kind: str = "llama", **changes: Any) -> Basis:
    told = tiny_text.build(kind).config.to_dict()
    return replace(families.basis_of(told, families.family_of(told, ""), ""), **changes)


@pytest.mark.parametrize(
    ("config", "basis", "message"),
    [
        (donor("language.1.q"), host(), ""),
        (donor("language.2.q"), host(), "has 2 blocks, and the donor changes language.2.q"),
        (donor("language.1.k"), host(), "makes 16 numbers of 32 in language.1.k, and the donor 32 of 32"),
        (donor("language.1.qkv", outputs=64), host(), ""),
        (donor("language.1.qkv", outputs=96), host(), "makes 16 numbers of 32 in language.1.k, and the donor 32 of 32"),
        (donor("language.1.q"), host("gpt2"), ""),
        (donor("language.1.gate", outputs=128), host("gpt2"), "has no projection 'gate', and the donor changes language.1.gate"),
        (donor("language.1.q"), host("t5"), "has no stack 'language', and the donor changes language.1.q"),
        (donor("decoder.2.q", outputs=64), host("t5"), ""),
        (donor("encoder.2.q", outputs=64), host("t5"), "has 2 blocks, and the donor changes encoder.2.q"),
        (donor("encoder.1.gate", outputs=48), host("t5"), "has no projection 'gate', and the donor changes encoder.1.gate"),
        (donor("language.1.q"), host("gemma2"), "has no stack 'language', and the donor changes language.1.q"),
    ],
)  # fmt: skip
def test_hosts_that_cannot_take_it(config: dict[str, Any], basis: Basis, message: str) -> None:
    assert lora_files.why_not(config, basis) == message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modules": {}}, "modules is not a table of projections"),
        (donor("language.01.q"), "module 'language.01.q' is not called STACK.BLOCK.PROJECTION"),
        (donor("tower.1.q"), "module 'tower.1.q' is not called STACK.BLOCK.PROJECTION"),
        (donor("language.1.q", rank=0), "module 'language.1.q' has rank, in and out [0, 32, 32], not positive whole numbers"),
        ({"modules": {"language.1.q": {"rank": 1, "in": 2, "out": 2, "scaling": float("nan")}}}, "module 'language.1.q' has scaling nan, not a number"),
    ],
)  # fmt: skip
def test_configs_that_are_none(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        lora_files.shapes(config)
    assert str(caught.value) == message


def test_a_folder_of_llava_gives_a_graft_and_a_projector() -> None:
    factors = {key: torch.ones(shape) for key, shape in PAIR.items()}
    beside = {
        f"base_model.model.model.mm_projector.{k}": torch.ones(32, *s) for k, s in (("0.weight", (8,)), ("0.bias", ()))
    }
    found = sort_keys({**factors, **beside}, About(beside={"adapter_config.json": TOLD}))
    assert found.graft and found.projector and not found.dropped
    assert found.graft.config == {"modules": {"language.0.q": {"rank": 4, "in": 32, "out": 32, "scaling": 2.0}}}
    assert found.graft.origins == {
        "language.0.q.down": (f"{Q}.lora_A.weight",),
        "language.0.q.up": (f"{Q}.lora_B.weight",),
    }
    assert (found.projector.kind, sorted(found.projector.tensors)) == ("linear", ["0.bias", "0.weight"])
    assert sort_keys(factors, About(beside={"adapter_config.json": TOLD})).projector is None


@pytest.mark.parametrize(
    ("extra", "beside", "message"),
    [
        ({}, {}, "has no adapter_config.json beside it, so its alpha is not known (name the folder that holds both)"),
        ({"base_model.model.model.embed_tokens.weight": torch.ones(4, 32)}, {"adapter_config.json": TOLD}, "tensor 'base_model.model.model.embed_tokens.weight' is a whole weight that was trained beside the LoRA (a member that holds whole weights can be merged instead)"),
    ],
)  # fmt: skip
def test_folders_that_are_more_or_less_than_that(extra: dict[str, Any], beside: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        sort_keys({key: torch.ones(shape) for key, shape in PAIR.items()} | extra, About(beside=beside))
    assert str(caught.value) == message
