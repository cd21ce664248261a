"""Adapters with anything in their config, and any shapes: a plan or one sentence, never a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from fuse.adapters.config import KNOWN
from fuse.adapters.keys import ROLES
from fuse.errors import FuseError
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from tests.members import save_member

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "q_proj", "embed_tokens", "lm_head", "(", "none", "all"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["q_proj", "(", "embed_tokens"]), inner),
    max_leaves=3,
)  # fmt: skip
MODULES = ("layers.0.self_attn.q_proj", "layers.9.mlp.up_proj", "embed_tokens", "norm", "")
ENDS = sorted({end for roles in ROLES.values() for end in roles} | {"", "base_layer", "modules_to_save.default"})
SHAPES = st.lists(st.sampled_from([0, 1, 2, 8, 32, 48, 64]), max_size=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    told = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    for tied in (False, True):
        save_member(LlamaForCausalLM(LlamaConfig(**told, vocab_size=64, tie_word_embeddings=tied)), folder / f"{tied}")
    (folder / "adapter").mkdir()
    return folder


@st.composite
def adapters(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    kind = draw(st.sampled_from(sorted(KNOWN)))
    plain = {"peft_type": kind, "r": 2, "alpha": 4, "lora_alpha": 4, "token_indices": [1, 5]}
    config: dict[str, Any] = {key: value for key, value in plain.items() if key in KNOWN[kind]}
    free = sorted(KNOWN[kind] - {"peft_type", "init_lora_weights"})
    config |= draw(st.dictionaries(st.sampled_from(free), VALUES, max_size=2))
    names = st.tuples(st.sampled_from(["model.", ""]), st.sampled_from(MODULES), st.sampled_from([*ROLES[kind], *ENDS]),
                      st.sampled_from(["weight", "bias", ""]))  # fmt: skip
    keys = draw(
        st.lists(
            names.map(lambda parts: ".".join(["base_model.model", *(p for p in parts if p)])), min_size=1, max_size=4
        )
    )
    tensors = {key.replace("..", "."): torch.ones(draw(SHAPES)) for key in keys}
    if draw(st.booleans()):
        at = "base_model.model.model.layers.0.self_attn.q_proj"
        tensors |= {f"{at}.lora_A.weight": torch.ones(2, 32), f"{at}.lora_B.weight": torch.ones(32, 2)}
    return config, tensors


@given(adapter=adapters(), tied=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_plan_or_a_sentence(place: Path, adapter: tuple[dict[str, Any], dict[str, torch.Tensor]], tied: bool) -> None:
    config, tensors = adapter
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, place / "adapter" / "adapter_model.safetensors")
    recipe = {
        "members": {"a": {"base": f"{tied}", "adapter": "adapter"}},
        "language": {"method": "linear", "weights": 1},
    }
    (place / "recipe.json").write_text(json.dumps(recipe))
    try:
        make_plan(load_recipe(place / "recipe.json"))
    except FuseError as error:
        assert error.problem and "\n" not in error.problem
