"""What is refused, word for word; and what the module may cost."""

import subprocess
import sys
import time
from typing import Any

import pytest

from fuse import families
from fuse.errors import CheckpointError

WHERE = "m"
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64,
}  # fmt: skip
LLAMA = {"model_type": "llama", **TEXT}
LLAVA = {"model_type": "llava", "text_config": LLAMA}
Q = "model.layers.0.self_attn.q_proj"


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*arguments, WHERE)
    return str(caught.value)


def whole(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return families.language_shapes(config, WHERE)[0]


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("llavva", "m: config.json: model_type 'llavva' is not a family that fuse knows"),
        ("../llava", "m: config.json: model_type '../llava' is not a plain word"),
        ("Llava", "m: config.json: model_type 'Llava' is not a plain word"),
        ("llava\n", "m: config.json: model_type 'llava\\n' is not a plain word"),
        (7, "m: config.json: model_type '7' is not a plain word"),
        (["llava"], "m: config.json: model_type \"['llava']\" is not a plain word"),
        (None, "m: config.json: model_type is missing"),
    ],
)
def test_unknown_families(model_type: Any, message: str) -> None:
    assert refusal(families.family_of, {"model_type": model_type}).startswith(message)


def test_the_hint_names_near_families_or_all() -> None:
    assert "(did you mean llava" in refusal(families.family_of, {"model_type": "llavva"})
    assert "aya_vision, blip-2, cohere" in refusal(families.family_of, {"model_type": "zzz"})


def test_an_unknown_language_model() -> None:
    config = {"model_type": "internvl_chat", "llm_config": {"model_type": "internlm2"}}
    message = refusal(families.places, config, [])
    assert message.startswith("m: config.json: model_type 'internlm2' is not a language model that fuse knows")


@pytest.mark.parametrize("inner", [[], "llama", 3])
def test_a_text_config_that_is_no_object(inner: Any) -> None:
    message = refusal(families.places, {"model_type": "llava", "text_config": inner}, [])
    assert message == f"m: config.json: text_config is {inner!r}, not an object"


@pytest.mark.parametrize(
    ("config", "key", "message"),
    [
        (LLAMA, f"{Q}.scale", f"m: tensor '{Q}.scale' is not part of a llama language model"),
        (LLAMA, "model.vision_tower.x", "m: tensor 'model.vision_tower.x' is not part of a llama language model"),
        (
            LLAMA, f"base_model.model.{Q}.weight",
            f"m: tensor 'base_model.model.{Q}.weight' is not part of a llama checkpoint "
            "(these are the names of a LoRA adapter; merge it into its base first)",
        ),
        (
            LLAMA, f"{Q}.lora_A.weight",
            f"m: tensor '{Q}.lora_A.weight' is not part of a llama checkpoint "
            "(these are the names of a LoRA adapter; merge it into its base first)",
        ),
        (
            LLAMA, f"_orig_mod.{Q}.weight",
            f"m: tensor '_orig_mod.{Q}.weight' is not part of a llama checkpoint "
            "(these are the names of a compiled model; save the model that was compiled)",
        ),
        (
            LLAVA, f"module.{Q}.weight",
            f"m: tensor 'module.{Q}.weight' is not part of a llava checkpoint "
            "(these are the names of a DataParallel wrapper; save its `.module`)",
        ),
        (
            LLAVA, "model.mm_projector.0.weight",
            "m: tensor 'model.mm_projector.0.weight' is not part of a llava checkpoint with a llama language model "
            "(known beginnings: language_model., lm_head., model.language_model., model.multi_modal_projector., "
            "model.vision_tower., model.vision_tower.vision_model., multi_modal_projector., vision_tower., "
            "vision_tower.vision_model.)",
        ),
    ],
)  # fmt: skip
def test_keys_that_no_table_explains(config: dict[str, Any], key: str, message: str) -> None:
    assert refusal(families.places, config, [key]) == message


def test_a_tensor_name_is_not_a_beginning() -> None:
    config = {"model_type": "llava_next", "text_config": LLAMA}
    assert families.places(config, ["image_newline"], WHERE)["image_newline"] == families.Place("extra", "image_newline")
    assert refusal(families.places, config, ["image_newlines"]).startswith("m: tensor 'image_newlines' is not part of")


def test_two_keys_with_one_name() -> None:
    keys = ["language_model.model.norm.weight", "model.language_model.norm.weight"]
    assert refusal(families.places, LLAVA, keys) == (
        "m: tensors 'language_model.model.norm.weight' and 'model.language_model.norm.weight' are the same part of a llava"
    )


def test_a_missing_tensor() -> None:
    found = whole(LLAMA)
    del found["model.layers.1.mlp.up_proj.weight"]
    assert refusal(families.check_language, LLAMA, found) == (
        "m: tensor 'model.layers.1.mlp.up_proj.weight' is missing: config.json promises 2 layers of llama"
    )


def test_the_head_may_be_missing_only_where_it_is_tied() -> None:
    found = whole(LLAMA)
    del found["lm_head.weight"]
    families.check_language({**LLAMA, "tie_word_embeddings": True}, found, WHERE)
    assert refusal(families.check_language, LLAMA, found).startswith("m: tensor 'lm_head.weight' is missing")
    inside = {"model_type": "mllama", "tie_word_embeddings": True, "text_config": {**TEXT, "cross_attention_layers": [1]}}
    found = whole(inside)
    del found["lm_head.weight"]  # Mllama never ties
    assert refusal(families.check_language, inside, found).startswith("m: tensor 'lm_head.weight' is missing")


def test_a_layer_too_many() -> None:
    assert refusal(families.check_language, LLAMA, whole({**LLAMA, "num_hidden_layers": 3})) == (
        "m: tensor 'model.layers.2.self_attn.q_proj.weight' is beyond the 2 layers of config.json"
    )


@pytest.mark.parametrize("config", [LLAMA, LLAVA])
def test_a_shape_that_the_config_denies(config: dict[str, Any]) -> None:
    found = {**whole(config), "model.layers.1.mlp.up_proj.weight": (40, 32)}
    assert refusal(families.check_language, config, found).startswith(
        "m: tensor 'model.layers.1.mlp.up_proj.weight' has shape [40, 32], but config.json makes it [48, 32]"
    )


@pytest.mark.parametrize("value", [0, -1, 2**31, 2**62, 1.5, 32.0, True, "32", [32], float("nan")])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_hostile_numbers(key: str, value: Any) -> None:
    for config in ({**LLAMA, key: value}, {"model_type": "llava", "text_config": {**LLAMA, key: value}}):
        message = refusal(families.language_shapes, config)
        assert message.startswith(f"m: config.json: {key} is {value!r}, not a whole number from 1 to")


def test_a_width_that_the_heads_do_not_divide() -> None:
    assert "hidden size 32 does not divide by 5 heads" in refusal(
        families.language_shapes, {**LLAMA, "num_attention_heads": 5}
    )


def test_too_many_layers() -> None:
    message = refusal(families.language_shapes, {**LLAMA, "num_hidden_layers": 10**9})
    assert message == "m: config.json: num_hidden_layers is 1000000000, not a whole number from 1 to 9,999"


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys; from fuse import families\n"
        "from fuse.families.registry import FAMILIES, ORIGINALS, TEXTS\n"
        "for t in [*FAMILIES, *TEXTS, *ORIGINALS]: families.family_of({'model_type': t}, 'm')\n"
        "for t in TEXTS: families.places({'model_type': t}, [], 'm')\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("layers", "seconds"), [(32, 0.05), (80, 0.15)])
def test_a_large_model_takes_milliseconds(layers: int, seconds: float) -> None:
    """Three members of a 7B's depth within 50 ms; the best of several runs, as the machine is shared."""
    config = {"model_type": "llama", "num_hidden_layers": layers}
    found = whole(config)
    best = min(_seconds(config, found) for _ in range(7))
    assert 3 * best < seconds, best


def _seconds(config: dict[str, Any], found: dict[str, tuple[int, ...]]) -> float:
    start = time.perf_counter()
    families.places(config, list(found), WHERE)
    families.check_language(config, found, WHERE)
    return time.perf_counter() - start
