"""Every text family against transformers itself: names, shapes, numbers and defaults."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse import families
from fuse.errors import CheckpointError
from fuse.families.basis import KEYS
from fuse.families.registry import TEXTS, text_module
from tests.tiny_text import INNER_CONFIGS, TEXT_TYPES, build, default_config

WHERE = "tiny"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder and in-memory keys of each tiny model, built and saved once."""
    folders: dict[str, tuple[Path, set[str]]] = {}

    def get(model_type: str) -> tuple[Path, set[str]]:
        if model_type not in folders:
            model = build(model_type)
            folder = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(folder)
            folders[model_type] = folder, set(model.state_dict())
        return folders[model_type]

    return get


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def language(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    found = families.places(config, list(tensors), WHERE)
    return {place.canonical: tuple(tensors[key].shape) for key, place in found.items() if place is not None}


def test_every_text_type_is_built_or_inner() -> None:
    assert set(TEXTS) == set(TEXT_TYPES) | set(INNER_CONFIGS)


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_every_key_has_one_place_and_every_shape_agrees(model_type: str, saved: Any) -> None:
    folder, in_memory = saved(model_type)
    config, tensors = read(folder)
    assert config["model_type"] == model_type
    found = families.places(config, list(tensors), WHERE)
    assert set(found) == set(tensors)
    assert all(place is not None and place.part == "language" for place in found.values())
    names = {place.canonical for place in found.values() if place is not None}
    assert len(names) == len(tensors)
    text = families.text_family_of(config, families.family_of(config, WHERE), WHERE)
    recomputed = {key for key, place in families.places(config, sorted(in_memory), WHERE).items() if place is None}
    tied = {text.head} if text.head not in names else set()
    assert names == in_memory - recomputed - tied
    families.check_language(config, language(config, tensors), WHERE)


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_required_and_optional_tensors_are_exact(model_type: str, saved: Any) -> None:
    config, tensors = read(saved(model_type)[0])
    required, _ = families.language_shapes(config, WHERE)
    found = language(config, tensors)
    missing = {name for name in required if name not in found}
    assert missing <= {"lm_head.weight"}
    for name in required.keys() - missing:
        assert required[name] == found[name], name
        with pytest.raises(CheckpointError, match="is missing"):
            families.check_language(config, {k: v for k, v in found.items() if k != name}, WHERE)


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_basis_is_the_config_of_transformers(model_type: str, saved: Any) -> None:
    folder, _ = saved(model_type)
    config, tensors = read(folder)
    family = families.family_of(config, WHERE)
    basis, text = families.basis_of(config, family, WHERE), families.text_family_of(config, family, WHERE)
    model = build(model_type)
    c = model.config
    heads, hidden = c.num_attention_heads, c.hidden_size
    assert (basis.hidden_size, basis.layers, basis.heads) == (hidden, c.num_hidden_layers, heads)
    assert basis.kv_heads == getattr(c, "num_key_value_heads", heads)
    assert basis.head_dim == getattr(c, "head_dim", hidden // heads)
    assert basis.vocab_size == c.vocab_size
    assert basis.tied == bool(c.tie_word_embeddings) == (text.head not in tensors)
    activation = text.keys.get("activation", "hidden_act")
    assert basis.activation == getattr(c, activation)
    if basis.norm_eps is not None:
        assert basis.norm_eps == getattr(c, text.keys.get("norm_eps", "rms_norm_eps"))
    rope = getattr(c, "rope_parameters", None) or {}
    assert basis.rope_theta == (rope.get("full_attention", rope)).get("rope_theta")
    assert (basis.rope_scaling == "") == (model_type != "gemma3_text")


@pytest.mark.parametrize("model_type", list(TEXTS))
def test_defaults_are_the_config_class_s(model_type: str) -> None:
    text = text_module(model_type, WHERE)
    config = default_config(model_type)
    defaults = text.defaults[model_type]
    for key, value in defaults.items():
        assert value == class_default(config, key, value), key
    read_keys = {text.keys.get(field, key) for field, key in KEYS.items()}
    unknown = {key for key in read_keys if key not in defaults and getattr(config, key, None) is not None}
    assert not unknown


def class_default(config: Any, key: str, ours: Any) -> Any:
    """A class attribute's default; a value that the class derives from others counts as the null it starts from."""
    if key in ("rope_theta", "rope_local_base_freq"):
        rope = config.rope_parameters
        kind = "sliding_attention" if key == "rope_local_base_freq" else "full_attention"
        return rope.get(kind, rope)["rope_theta"]
    found = getattr(config, key, None)
    if key == "tie_word_embeddings":
        return bool(found)
    derived = {
        "num_key_value_heads": "num_attention_heads",
        "num_decoder_layers": "num_layers",
        "word_embed_proj_dim": "hidden_size",
    }
    if ours is None and key in derived:
        assert type(config)(**{derived[key]: 8}).to_dict()[key] == 8
        return None
    if ours is None and key == "head_dim":
        assert found in (None, config.hidden_size // config.num_attention_heads)
        return None
    return found


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_absent_keys_mean_the_defaults(model_type: str) -> None:
    """A config that holds nothing but its model_type gives the numbers of the class."""
    sparse = {"model_type": model_type}
    full = default_config(model_type).to_dict()
    family = families.family_of(sparse, WHERE)
    assert families.basis_of(sparse, family, WHERE) == families.basis_of(full, family, WHERE)
    assert families.language_shapes(sparse, WHERE) == families.language_shapes(full, WHERE)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 24}),
        ("qwen3", {"attention_bias": True}),
        ("gemma", {"attention_bias": True}),
        ("gemma2", {"attention_bias": True}),
        ("gemma3_text", {"attention_bias": True}),
        ("smollm3", {"attention_bias": True, "mlp_bias": True}),
        ("cohere", {"use_qk_norm": True}),
        ("cohere", {"attention_bias": True}),
        ("cohere2", {"attention_bias": True}),
        ("mllama_text_model", {"cross_attention_layers": []}),
        ("gpt2", {"n_inner": 40}),
        ("gpt2", {"tie_word_embeddings": False}),
        ("t5", {"feed_forward_proj": "gated-gelu"}),
        ("t5", {"num_decoder_layers": 1}),
        ("opt", {"word_embed_proj_dim": 16}),
        ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
        ("opt", {"do_layer_norm_before": False}),
    ],
)
def test_switches_of_the_config(model_type: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = build(model_type, **settings)
    model.save_pretrained(tmp_path)
    config, tensors = read(tmp_path)
    families.check_language(config, language(config, tensors), WHERE)


def test_an_optional_tensor_is_in_every_layer_or_in_none() -> None:
    model = build("llama", attention_bias=True)
    config, tensors = model.config.to_dict(), model.state_dict()
    shapes = language(config, tensors)
    del shapes["model.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(CheckpointError) as error:
        families.check_language(config, shapes, WHERE)
    assert str(error.value) == (
        "tiny: tensor 'model.layers.1.self_attn.k_proj.bias' is missing, and other layers have it"
    )


@pytest.mark.parametrize(("model_type", "outer"), [("gpt2", "transformer."), ("opt", "model.")])
def test_files_saved_without_the_head(model_type: str, outer: str, tmp_path: Path) -> None:
    """The bare classes write `h.0...` and `decoder...`; the canonical names stay those of the class with the head."""
    model = build(model_type)
    model.base_model.save_pretrained(tmp_path)
    config, tensors = read(tmp_path)
    assert not any(key.startswith(outer) for key in tensors)
    shapes = language(config, tensors)
    assert shapes == {k: tuple(v.shape) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    families.check_language(config, shapes, WHERE)


def test_buffers_of_old_releases() -> None:
    """Causal masks, inverse frequencies and the embeddings that T5 stored three times have no place."""
    old = {
        "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
        "gpt2": ["h.0.attn.bias", "h.11.attn.masked_bias", "transformer.h.1.attn.bias"],
        "t5": [
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        ],
        "opt": ["decoder.version", "model.decoder.version"],
    }
    for model_type, keys in old.items():
        assert families.places({"model_type": model_type}, keys, WHERE) == dict.fromkeys(keys)


def test_t5_with_its_duplicates(tmp_path: Path) -> None:
    model = build("t5")
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    config, tensors = read(tmp_path)
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight"} <= tensors.keys()
    shapes = language(config, tensors)
    assert "encoder.embed_tokens.weight" not in shapes
    families.check_language(config, shapes, WHERE)


def test_the_two_names_of_one_gpt2_tensor_clash() -> None:
    with pytest.raises(CheckpointError) as error:
        families.places({"model_type": "gpt2"}, ["wte.weight", "transformer.wte.weight"], WHERE)
    assert str(error.value) == ("tiny: tensors 'wte.weight' and 'transformer.wte.weight' are the same part of a gpt2")


def test_mllama_layers() -> None:
    """Cross-attention layers have no self-attention; the embedding has eight rows more than the head."""
    config = build("mllama_text_model").config.to_dict()
    required, _ = families.language_shapes(config, WHERE)
    assert required["model.embed_tokens.weight"] == (72, 32)
    assert required["lm_head.weight"] == (64, 32)
    assert "model.layers.1.self_attn.q_proj.weight" not in required
    assert required["model.layers.1.cross_attn_attn_gate"] == (1,)
    assert "model.layers.0.cross_attn.q_proj.weight" not in required
