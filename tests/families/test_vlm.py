"""Configs of multimodal checkpoints as the Hub has them: shortened, or without what they must have."""

import json
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from fuse import families
from fuse.errors import CheckpointError
from tests import tiny_vlm

WHERE = "tiny"


def basis(config: dict[str, Any]) -> families.Basis:
    return families.basis_of(config, families.family_of(config, WHERE), WHERE)


@pytest.mark.parametrize("kind", tiny_vlm.VLM_TYPES)
def test_a_sparse_text_config_has_the_basis_of_the_full_one(kind: str) -> None:
    """llava-hf publishes only what differs from the class's defaults; today's files hold everything."""
    config = CONFIG_MAPPING[kind](**tiny_vlm.CONFIGS[kind])
    full = json.loads(config.to_json_string(use_diff=False)) | {"model_type": kind}
    written = full["text_config"]
    defaults = json.loads(CONFIG_MAPPING[written["model_type"]]().to_json_string(use_diff=False))
    kept = {k: v for k, v in written.items() if k == "model_type" or v != defaults.get(k)}
    assert len(kept) < len(written)
    assert basis({**full, "text_config": kept}) == basis(full)


@pytest.mark.parametrize("kind", tiny_vlm.VLM_TYPES)
def test_a_missing_model_type_of_the_text_config_is_the_class_default(kind: str) -> None:
    kept = {"vocab_size": 1000}
    full = json.loads(CONFIG_MAPPING[kind](text_config=kept).to_json_string(use_diff=False)) | {"model_type": kind}
    assert basis({**full, "text_config": kept}) == basis(full)


def test_an_outer_hidden_size_is_not_the_language_models() -> None:
    """PaliGemma's outer config has one; only Qwen-VL's old configs are the language model's themselves."""
    inner = {"model_type": "paligemma", "text_config": {"model_type": "gemma"}}
    assert basis({**inner, "hidden_size": 17}) == basis(inner)
    assert basis({"model_type": "qwen2_vl", "hidden_size": 1024}).hidden_size == 1024


@pytest.mark.parametrize("kind", tiny_vlm.VLM_TYPES)
def test_an_unknown_module_is_refused_by_name(kind: str) -> None:
    config = {"model_type": kind, **tiny_vlm.CONFIGS[kind]}
    with pytest.raises(CheckpointError, match=r"'model\.adapter_x\.weight' is not part of a"):
        families.places(config, ["model.adapter_x.weight"], WHERE)
