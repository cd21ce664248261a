"""The numbers of a base: rotary settings old and new, fallbacks, nesting; and what reading them costs."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from fuse import families
from fuse.families.basis import defaults_of
from fuse.families.registry import text_module
from fuse.families.rope import rope_of
from fuse.families.symbols import evaluate, names_in
from tests.tiny_text import default_config

WHERE = "folder"
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def basis(model_type: str, **settings: Any) -> families.Basis:
    config = {"model_type": model_type, **settings}
    return families.basis_of(config, families.family_of(config, WHERE), WHERE)


def rope(model_type: str, **settings: Any) -> tuple[float | None, str]:
    return rope_of(settings, defaults_of(text_module(model_type, WHERE), model_type), WHERE)


@pytest.mark.parametrize(
    ("model_type", "old", "new"),
    [
        ("llama", {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ("llama", {"rope_theta": 500000}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        ("llama", {"rope_scaling": None}, {"rope_parameters": None}),
        (
            "llama",
            {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
            {"rope_parameters": {**LLAMA3, "factor": 8, "rope_theta": 500000.0}},
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"type": "linear", "rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        ),
        (
            "qwen2",
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 32768},
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        ),
        (
            "qwen2_vl_text",
            {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1, 1.5], "long_factor": [2, 3]}},
            {
                "original_max_position_embeddings": 4096,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0,
                    "original_max_position_embeddings": 4096,
                    "short_factor": [1.0, 1.5],
                    "long_factor": [2.0, 3.0],
                },
            },
        ),
        (
            "phi3",
            {"partial_rotary_factor": 0.75},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}},
        ),
        (
            "gemma3_text",
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8}},
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
                }
            },
        ),
        ("gemma3_text", {}, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
    ],
)
def test_old_and_new_rotary_keys_agree(model_type: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    assert rope(model_type, **old) == rope(model_type, **new)


@pytest.mark.parametrize(
    ("model_type", "old"),
    [
        ("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 32768}),
        ("qwen2_vl_text", {"rope_theta": 5e5, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}),
        ("phi3", {"partial_rotary_factor": 0.75}),
        ("gemma3_text", {"rope_theta": 2e6, "rope_local_base_freq": 5e3}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ],
)
def test_transformers_rewrites_old_keys_to_the_same_rotation(model_type: str, old: dict[str, Any]) -> None:
    written = type(default_config(model_type))(**old).to_dict()
    assert "rope_parameters" in written
    del written["model_type"]
    assert rope(model_type, **written) == rope(model_type, **old)


def test_multimodal_positions_count_as_unscaled() -> None:
    plain = rope("qwen2", rope_theta=1e6)
    assert plain == (1e6, "")
    assert rope("qwen2_vl_text", rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]}) == plain
    assert (
        rope("qwen2_vl_text", rope_scaling={"rope_type": "default", "type": "default", "mrope_section": [1]}) == plain
    )
    interleaved = {"rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True, "mrope_section": [24, 20, 20]}
    assert rope("qwen3_vl_text", rope_parameters=interleaved) == plain


def test_scaling_tells_bases_apart() -> None:
    assert rope("llama", rope_theta=5e5) == (5e5, "")
    theta, scaling = rope("llama", rope_theta=5e5, rope_scaling=LLAMA3)
    assert theta == 5e5
    assert scaling == (
        '{"factor":8.0,"high_freq_factor":4.0,"low_freq_factor":1.0,'
        '"original_max_position_embeddings":8192.0,"rope_type":"llama3"}'
    )
    assert scaling != rope("llama", rope_theta=5e5, rope_scaling={**LLAMA3, "factor": 32.0})[1]


def test_gemma3_holds_both_rotations() -> None:
    theta, both = rope("gemma3_text")
    assert theta == 1e6
    assert both == '{"full_attention":{"rope_theta":1000000.0},"sliding_attention":{"rope_theta":10000.0}}'
    assert rope("gemma3_text", rope_local_base_freq=5e3)[1] != both


def test_models_without_rotary_positions() -> None:
    for model_type in ("gpt2", "t5", "opt"):
        assert rope(model_type, rope_theta=1.0) == (None, "")


def test_null_is_derived_and_absent_is_the_default() -> None:
    assert basis("mistral", num_key_value_heads=None).kv_heads == 32
    assert basis("mistral").kv_heads == 8
    assert basis("llama", num_attention_heads=16).kv_heads == 16
    assert basis("llama", num_attention_heads=16).head_dim == 256
    assert basis("gemma", hidden_size=2048, num_attention_heads=8).head_dim == 256
    assert basis("qwen3", hidden_size=1024, num_attention_heads=16).head_dim == 128
    assert basis("gpt2", n_embd=64, n_head=4).intermediate_size == 256
    assert basis("t5", num_layers=8).sizes["m"] == 8
    assert basis("t5", num_layers=8, num_decoder_layers=2).sizes["m"] == 2
    assert basis("opt", hidden_size=1024, num_attention_heads=16).sizes["E"] == 1024
    assert basis("opt", word_embed_proj_dim=512).sizes["E"] == 512
    assert basis("cohere", num_attention_heads=32).sizes["N"] == 32


def test_language_models_of_one_base_share_their_basis() -> None:
    """Qwen2-VL's language model, as its config nests it, and the Qwen2 it came from."""
    numbers = {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "intermediate_size": 8960, "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    }  # fmt: skip
    alone = basis("qwen2", **numbers, tie_word_embeddings=True)
    inside = basis("qwen2_vl_text", **numbers, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]})
    assert inside == replace(alone, tied=False)
    assert basis("qwen2_vl", **numbers, rope_scaling={"type": "mrope"}, tie_word_embeddings=True) == alone


def test_sparse_text_config_of_llava() -> None:
    """llava-hf's text_config holds little more than the vocabulary; the rest are LlamaConfig's defaults."""
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}}
    found = families.basis_of(config, families.family_of(config, WHERE), WHERE)
    assert (found.hidden_size, found.layers, found.vocab_size, found.norm_eps) == (4096, 32, 32064, 1e-5)


def test_symbols() -> None:
    assert evaluate("Q+2*K", {"Q": 32, "K": 16}) == 64
    assert evaluate("V+8", {"V": 64}) == 72
    assert evaluate("1", {}) == 1
    assert names_in("Q+2*K+Q") == ["Q", "K"]


def test_placing_needs_no_torch_and_no_time() -> None:
    """A fresh interpreter places 3 x 300 keys of a 32-layer model; the bound leaves room for a slow machine."""
    code = """
import sys, time
from fuse import families
config = {"model_type": "llama"}
keys = list(families.language_shapes(config, "x")[0])
assert len(keys) == 291
started = time.process_time()
for _ in range(3):
    found = families.places(config, keys, "x")
    families.check_language(config, dict(families.language_shapes(config, "x")[0]), "x")
assert time.process_time() - started < 3, time.process_time() - started
assert all(place.canonical == key for key, place in found.items())
assert not {"torch", "transformers", "numpy"} & set(sys.modules), "heavy imports"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
