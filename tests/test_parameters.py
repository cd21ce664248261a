"""Lists over depth and where a tensor stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.parameters import interpolate, layer_position, stack_depths


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(0, 1))
def test_interpolation_stays_within_its_values(values: list[float], position: float) -> None:
    found = interpolate(values, position)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    assert interpolate(values, 0) == values[0] and interpolate(values, 1) == values[-1]


def test_interpolation_is_linear() -> None:
    assert [interpolate([0, 1, 3], p) for p in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 2, 3]


NAMES = [
    "model.layers.0.mlp.up_proj.weight", "model.layers.3.input_layernorm.weight", "transformer.h.0.ln_1.weight",
    "transformer.h.3.ln_1.weight", "encoder.block.1.layer.0.layer_norm.weight", "decoder.block.2.layer.0.layer_norm.weight",
    "vision_tower.encoder.layers.23.mlp.fc1.weight", "vision_tower_aux.stages.3.blocks.26.mlp.fc1.weight",
]  # fmt: skip


@pytest.mark.parametrize(("name", "position"), [
    ("model.embed_tokens.weight", 0), ("model.layers.0.mlp.up_proj.weight", 0), ("model.layers.3.input_layernorm.weight", 1),
    ("model.layers.1.self_attn.q_proj.bias", 1 / 3), ("model.norm.weight", 1), ("lm_head.weight", 1),
    ("transformer.wpe.weight", 0), ("transformer.h.3.ln_1.weight", 1), ("shared.weight", 0),
    ("encoder.block.1.layer.0.layer_norm.weight", 1), ("decoder.block.1.layer.0.layer_norm.weight", 0.5),
    ("vision_tower.patch_conv.weight", 0), ("vision_tower.pre_layrnorm.weight", 0), ("vision_tower.ln_pre.weight", 0),
    ("vision_tower.post_layernorm.weight", 1), ("multi_modal_projector.patch_merger.weight", 1),
    ("vision_tower_aux.stages.0.blocks.26.mlp.fc1.weight", 0), ("image_newline", 1),
])  # fmt: skip
def test_positions(name: str, position: float) -> None:
    assert layer_position(name, stack_depths(NAMES)) == position


def test_one_layer_is_the_beginning() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    assert layer_position(name, stack_depths([name])) == 0
