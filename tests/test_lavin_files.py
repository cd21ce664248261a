"""LaVIN without torch's help: what a donor promises, which hosts can take it, and what a recipe may ask."""

from types import SimpleNamespace
from typing import Any

import pytest

from fuse.branches import lavin_projector_files
from fuse.branches.encoder_reads import Reads
from fuse.grafts import lavin_files

TOWER = {"width": 12, "layers": 3, "adapter_dim": 4, "groups": 2, "visual_adapter_type": "router"}
CONFIG = {"hidden_size": 16, "layers": 2, "adapter_dim": 8, "groups": 2, "adapter_type": "attn", "tower": TOWER}
LANGUAGE = {key: value for key, value in CONFIG.items() if key != "tower"}


def test_every_tensor_has_a_shape() -> None:
    found = lavin_files.shapes(CONFIG)
    assert found["adapter_modality_embedding.weight"] == (2, 16)
    assert found["layers.1.adapter_attn.conv_A.weight"] == (8, 16, 1)
    assert found["layers.1.adapter_attn.conv_D.weight"] == (16, 4, 1)
    assert found["layers.1.adapter_attn.expert_weights.weight"] == (2, 16)
    assert found["tower.2.adapter_attn.conv_B.bias"] == (12,)
    assert len(found) == 1 + 2 * 8 + 3 * 8


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({"adapter_type": "block"}, 1 + 2 * 16 + 3 * 8),
        ({"parts": "language"}, 1 + 2 * 8),
        ({"parts": "tower"}, 3 * 8),
        ({"tower": None}, 1 + 2 * 8),
        ({"tower": {**TOWER, "visual_adapter_type": "normal"}}, 1 + 2 * 8 + 3 * 4),
        ({"tower": {**TOWER, "visual_adapter_type": "router_block"}}, 1 + 2 * 8 + 3 * 16),
    ],
)  # fmt: skip
def test_kinds_of_adapters(changes: dict[str, Any], tensors: int) -> None:
    assert len(lavin_files.shapes({**CONFIG, **changes})) == tensors


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adapter_dim": 5}, "2 groups do not divide 5 channels and a width of 16"),
        ({"adapter_dim": 0}, "adapter_dim is 0, not a whole number above 0"),
        ({"layers": True}, "layers is True, not a whole number above 0"),
        ({"adapter_type": "mlp"}, "adapter_type is 'mlp', not one of attn, block"),
        ({"temperature": 0}, "temperature is 0, and scores are divided by it: it is above 0"),
        ({"temperature": "10"}, "temperature is '10', not a number"),
        ({"temperature": 1e-300}, "temperature is 1e-300, and scores are divided by at least 1e-06"),
        ({"adapter_scale": float("nan")}, "adapter_scale is nan, not a number"),
        ({"rounding": "bfloat16"}, "rounding is 'bfloat16', not one of float16, none"),
        ({"tower": {**TOWER, "route": "first"}}, "route is 'first', not one of per_image, official"),
        ({"tower": None, "parts": "tower"}, "parts is 'tower', and there are no adapters of a tower"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:
        lavin_files.checked({**CONFIG, **changes})
    assert str(error.value) == told


def host(**changes: Any) -> Any:
    return SimpleNamespace(**{"family": "llama", "hidden_size": 16, "layers": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"family": "gpt2"}, ""),
        ({"hidden_size": 32}, "has hidden size 32, and the adapters were made for 16"),
        ({"layers": 3}, "has 3 layers, and there are adapters for 2"),
        ({"family": "t5"}, "is an encoder and a decoder, and LaVIN's adapters belong to one stack of blocks"),
    ],
)  # fmt: skip
def test_which_hosts_can_take_them(changes: dict[str, Any], why: str) -> None:
    assert lavin_files.why_not(CONFIG, host(**changes)) == why
    assert lavin_files.why_not({**CONFIG, "parts": "tower"}, host(**changes)) == ""


def test_which_towers_can_take_them() -> None:
    assert lavin_files.why_not_tower(CONFIG, 12, 3) == ""
    assert lavin_files.why_not_tower(CONFIG, 16, 3) == "has width 16, and the tower's adapters were made for 12"
    assert lavin_files.why_not_tower(CONFIG, 12, 4) == "has 4 layers, and there are adapters for 3"
    told = "gets none: the graft has no adapters for a vision tower"
    assert lavin_files.why_not_tower(LANGUAGE, 12, 3) == told


def test_a_recipe_chooses() -> None:
    made = lavin_files.configured(CONFIG, {"route": "official", "temperature": 5, "modality": "image"})
    assert made["tower"] == {**TOWER, "route": "official"} and made["temperature"] == 5
    assert made["modality"] == "image" and made["rounding"] == "float16" and made["adapter_scale"] == 1.0
    assert lavin_files.configured(LANGUAGE, {}) == {**lavin_files.DEFAULTS, **LANGUAGE}
    assert lavin_files.tokens(made) == {}


@pytest.mark.parametrize(
    ("config", "options", "told"),
    [
        (LANGUAGE, {"parts": "tower"}, "parts is 'tower', and the donor has no adapters for a vision tower"),
        (LANGUAGE, {"route": "official"}, "`route` is how a tower's router chooses, and no tower has a router here"),
        ({**CONFIG, "tower": {**TOWER, "visual_adapter_type": "normal"}}, {"route": "official"}, "`route` is how a tower's router chooses, and no tower has a router here"),
        (CONFIG, {"parts": "tower", "modality": "text"}, "`modality` is about the language model's adapters, and parts is 'tower'"),
        (LANGUAGE, {"temperature": -1}, "temperature is -1, and scores are divided by it: it is above 0"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(config: dict[str, Any], options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:
        lavin_files.configured(config, options)
    assert str(error.value) == told


def test_the_projector_reads_class_tokens() -> None:
    config = {"width": 12, "hidden": 6, "hidden_size": 16, "layers": [3, 7]}
    assert lavin_projector_files.reads(config) == Reads("class", (3, 7))
    assert lavin_projector_files.reads({**config, "layers": []}) == Reads("class", ())
    assert lavin_projector_files.widths(config) == (12, 16)
    assert lavin_projector_files.tokens(config, 2) == 2
    assert lavin_projector_files.shapes(config)["conv_B.weight"] == (16, 6)
    for wrong, told in (({"layers": "3"}, "layers is '3', not a list of whole numbers"), ({"layers": [0.5]}, "layers is [0.5], not a list of whole numbers")):  # fmt: skip
        with pytest.raises(ValueError) as error:
            lavin_projector_files.reads({**config, **wrong})
        assert str(error.value) == told
    with pytest.raises(ValueError, match="hidden is -1, not a whole number above 0"):
        lavin_projector_files.shapes({**config, "hidden": -1})
