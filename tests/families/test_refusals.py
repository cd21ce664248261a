"""What a broken, foreign or hostile checkpoint is told, word for word."""

from collections.abc import Callable
from typing import Any

import pytest

from fuse import families
from fuse.errors import CheckpointError
from fuse.families.registry import FAMILIES, ORIGINALS, TEXTS

WHERE = "folder"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
}
LAYERS = "not a whole number from 1 to 9,999"
SIZES = "not a whole number from 1 to 2,147,483,647"


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as error:
        call()
    assert error.value.exit_code == 3
    return str(error.value)


def basis(**settings: Any) -> Any:
    config = {**LLAMA, **settings}
    return families.basis_of(config, families.family_of(config, WHERE), WHERE)


def shapes(**settings: Any) -> dict[str, tuple[int, ...]]:
    return dict(families.language_shapes({**LLAMA, **settings}, WHERE)[0])


def test_unknown_model_type_names_its_neighbours() -> None:
    assert message(lambda: families.family_of({"model_type": "gpt22"}, WHERE)) == (
        "folder: config.json: model_type 'gpt22' is not a family that fuse knows (did you mean gpt2?)"
    )


def test_unknown_model_type_without_neighbours_lists_all() -> None:
    known = ", ".join(sorted({*FAMILIES, *TEXTS, *ORIGINALS}))
    assert message(lambda: families.family_of({"model_type": "zzz"}, WHERE)) == (
        f"folder: config.json: model_type 'zzz' is not a family that fuse knows (known: {known})"
    )


def test_missing_model_type() -> None:
    for config in ({}, {"model_type": None}):
        assert message(lambda config=config: families.family_of(config, WHERE)) == (
            "folder: config.json: model_type is missing (is this a folder that transformers wrote?)"
        )


@pytest.mark.parametrize("model_type", ["../x", "a/b", "", "x" * 65, "Llama", 7, ["llama"], {"a": 1}, "llama\n"])
def test_hostile_model_type(model_type: Any) -> None:
    assert message(lambda: families.family_of({"model_type": model_type}, WHERE)) == (
        f"folder: config.json: model_type {str(model_type)[:80]!r} is not a plain word"
    )


def test_hostile_inner_model_type_imports_nothing() -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "../x"}}
    assert message(lambda: families.places(config, [], WHERE)) == (
        "folder: config.json: model_type '../x' is not a plain word"
    )
    config = {"model_type": "llava", "text_config": {"model_type": "os.path"}}
    assert message(lambda: families.places(config, [], WHERE)) == (
        "folder: config.json: model_type 'os.path' is not a language model that fuse knows (did you mean opt?)"
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "these are the names of a LoRA adapter; merge it into its base first",
        ),
        (
            "model.layers.0.self_attn.q_proj.lora_B.default.weight",
            "these are the names of a LoRA adapter; merge it into its base first",
        ),
        (
            "_orig_mod.model.layers.0.self_attn.q_proj.weight",
            "these are the names of a compiled model; save the model that was compiled",
        ),
        ("module.lm_head.weight", "these are the names of a DataParallel wrapper; save its `.module`"),
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "llava"])
def test_wrapped_names(model_type: str, key: str, hint: str) -> None:
    assert message(lambda: families.places({"model_type": model_type, "text_config": {}}, [key], WHERE)) == (
        f"folder: tensor {key!r} is not part of a {model_type} checkpoint ({hint})"
    )


@pytest.mark.parametrize(
    "key",
    ["foo.weight", "model.layers.0.self_attn.q_norm.weight", "model.layers.00.mlp.up_proj.weight", "", "lm_head.weight\n",
     "model.layers.-1.mlp.up_proj.weight", "transformer.h.0.ln_1.weight", "model.layers.x.mlp.up_proj.weight"],
)  # fmt: skip
def test_foreign_key(key: str) -> None:
    assert message(lambda: families.places(LLAMA, [key], WHERE)) == (
        f"folder: tensor {key!r} is not part of a llama language model"
    )


def test_foreign_key_of_a_multimodal_checkpoint() -> None:
    said = message(lambda: families.places({"model_type": "llava", "text_config": {}}, ["foo.weight"], WHERE))
    assert said.startswith(
        "folder: tensor 'foo.weight' is not part of a llava checkpoint with a llama language model (known beginnings: "
    )


def test_missing_layer() -> None:
    found = {name: shape for name, shape in shapes().items() if not name.startswith("model.layers.1.")}
    assert message(lambda: families.check_language(LLAMA, found, WHERE)) == (
        "folder: tensor 'model.layers.1.self_attn.q_proj.weight' is missing: config.json promises 2 layers of llama"
    )


def test_missing_head_unless_tied() -> None:
    found = shapes()
    del found["lm_head.weight"]
    assert message(lambda: families.check_language(LLAMA, found, WHERE)) == (
        "folder: tensor 'lm_head.weight' is missing: config.json promises 2 layers of llama"
    )
    families.check_language({**LLAMA, "tie_word_embeddings": True}, found, WHERE)
    families.check_language({**LLAMA, "tie_word_embeddings": True}, shapes(), WHERE)


def test_layer_beyond_depth() -> None:
    found = {**shapes(), "model.layers.2.input_layernorm.weight": (32,)}
    assert message(lambda: families.check_language(LLAMA, found, WHERE)) == (
        "folder: tensor 'model.layers.2.input_layernorm.weight' belongs to none of the 2 layers of config.json"
    )
    huge = f"model.layers.{'9' * 5000}.input_layernorm.weight"
    assert families.places(LLAMA, [huge], WHERE)[huge] is not None
    assert "belongs to none of the 2 layers" in message(
        lambda: families.check_language(LLAMA, {**shapes(), huge: (32,)}, WHERE)
    )


def test_layer_of_another_kind() -> None:
    """A cross-attention tensor in a layer that the config makes a self-attention layer."""
    config = {**LLAMA, "model_type": "mllama_text_model", "cross_attention_layers": [1]}
    found = {**families.language_shapes(config, WHERE)[0], "model.layers.0.cross_attn_attn_gate": (1,)}
    assert message(lambda: families.check_language(config, found, WHERE)) == (
        "folder: tensor 'model.layers.0.cross_attn_attn_gate' belongs to none of the 2 layers of config.json"
    )


@pytest.mark.parametrize(
    ("name", "shape", "promised", "symbols"),
    [
        ("model.layers.0.self_attn.k_proj.weight", (32, 32), [16, 32], "K D"),
        ("model.layers.1.mlp.down_proj.weight", (32,), [32, 48], "D F"),
        ("model.embed_tokens.weight", (65, 32), [64, 32], "V D"),
        ("lm_head.weight", (), [64, 32], "V D"),
        ("model.layers.1.self_attn.o_proj.bias", (31,), [32], "D"),
    ],
)
def test_wrong_shape(name: str, shape: tuple[int, ...], promised: list[int], symbols: str) -> None:
    assert message(lambda: families.check_language(LLAMA, {**shapes(), name: shape}, WHERE)) == (
        f"folder: tensor {name!r} has shape {list(shape)}, but config.json makes it {promised} ({symbols})"
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_hidden_layers": 10**9}, f"num_hidden_layers is 1000000000, {LAYERS}"),
        ({"num_hidden_layers": -1}, f"num_hidden_layers is -1, {LAYERS}"),
        ({"num_hidden_layers": 0}, f"num_hidden_layers is 0, {LAYERS}"),
        ({"num_hidden_layers": "32"}, f"num_hidden_layers is '32', {LAYERS}"),
        ({"num_hidden_layers": 1.5}, f"num_hidden_layers is 1.5, {LAYERS}"),
        ({"num_hidden_layers": True}, f"num_hidden_layers is True, {LAYERS}"),
        ({"num_hidden_layers": [2]}, f"num_hidden_layers is [2], {LAYERS}"),
        ({"vocab_size": 2**62}, f"vocab_size is 4611686018427387904, {SIZES}"),
        ({"num_key_value_heads": 0}, f"num_key_value_heads is 0, {SIZES}"),
        ({"head_dim": -8}, f"head_dim is -8, {SIZES}"),
        ({"num_attention_heads": 5}, "hidden size 32 does not divide by 5 heads"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', not a finite number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a finite number"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, not a finite number"),
        ({"rope_theta": -(10**400)}, f"rope_theta is -{'1' + '0' * 16}...{'0' * 19}, not a finite number"),
        ({"rope_scaling": [1]}, "rope_scaling is [1], not a mapping"),
        ({"rope_parameters": "none"}, "rope_parameters is 'none', not a mapping"),
        ({"rope_parameters": {"rope_type": ["default"]}}, "rope_type is ['default'], not a word"),
        ({"rope_scaling": {"type": "linear", "factor": {}}}, "factor is {}, not a finite number"),
    ],
)
def test_hostile_numbers(settings: dict[str, Any], problem: str) -> None:
    assert message(lambda: basis(**settings)) == f"folder: config.json: {problem}"


@pytest.mark.parametrize("value", ["3", {"a": 1}, [1.5], [-1], [True], [None]])
def test_hostile_layer_lists(value: Any) -> None:
    config = {**LLAMA, "model_type": "mllama_text_model", "cross_attention_layers": value}
    assert message(lambda: families.language_shapes(config, WHERE)) == (
        f"folder: config.json: cross_attention_layers is {value!r}, not a list of layers"
    )


@pytest.mark.parametrize("value", [[], [1], "llama", 3])
def test_text_config_that_is_no_object(value: Any) -> None:
    config = {"model_type": "llava", "text_config": value}
    assert message(lambda: families.places(config, [], WHERE)) == (
        f"folder: config.json: text_config is {value!r}, not an object"
    )


def test_long_values_are_cut() -> None:
    said = message(lambda: basis(num_hidden_layers="9" * 100_000))
    assert len(said) < 200


@pytest.mark.parametrize("changed", [{"wi_0": 1}, {}, {"wi": 1, "wi_0": 1, "wi_1": 1}])
def test_t5_stores_one_kind_of_mlp(changed: dict[str, int]) -> None:
    config = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 6, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    required, optional = families.language_shapes(config, "folder")
    inputs = {name: shape for name, shape in optional.items() if name.rsplit(".", 2)[-2] in changed}
    with pytest.raises(CheckpointError) as error:
        families.check_language(config, required | inputs, "folder")
    told = "a t5 language model stores wi or wi_0 and wi_1 in every layer, and one kind only"
    assert str(error.value) == f"folder: {told}"


def test_multimodal_config_without_its_text_config() -> None:
    with pytest.raises(CheckpointError) as error:
        families.places({"model_type": "llava"}, ["lm_head.weight"], "folder")
    assert str(error.value) == "folder: config.json: text_config is missing"
