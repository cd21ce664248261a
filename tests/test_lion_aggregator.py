"""LION's vision aggregator against the official code's numbers, as a module and as the projector of a branch."""

from typing import Any

import pytest
import torch

from fuse.branches import lion_aggregator_files
from fuse.branches.lion_aggregator import FusionAdapter, LionAggregator
from fuse.branches.projector_kinds import build_projector, describe
from fuse.errors import CheckpointError
from tests.original_branches import difference, golden
from tests.test_lion import parameters

CONFIG = {"layers": [2, 1, 0], "width": 24, "heads": 4, "intermediate": 20, "inner": 96, "hidden_size": 32}


@pytest.mark.parametrize("name", ["lion_fusion_adapter", "lion_fusion_adapter_inter3072"])
def test_blocks_are_the_official_ones(name: str) -> None:
    tensors, facts = golden(name)
    made = facts["constructor"]
    module = FusionAdapter(made["num_blocks"], made["dim"], made["num_heads"], facts["intermediate_size"])
    module.load_state_dict(parameters(tensors))
    x, first, second = (tensors[f"input.{key}"] for key in ("hidden_states", "kv0", "kv1"))
    tolerance = 2e-6  # the fixture's, in words
    with torch.no_grad():
        assert difference(module(x, [first, second]), tensors["output.fused"]) <= tolerance
        assert difference(module(x, [first, first]), tensors["output.fused_single_kv"]) <= tolerance
        one = module.blocks[0](x, first)
        assert difference(one, tensors["inter.block0"]) <= tolerance
        assert difference(module.blocks[1](one, second), tensors["inter.block1"]) <= tolerance


def test_the_path_to_visual_tokens_is_the_official_one() -> None:
    tensors, facts = golden("lion_va_path")
    module = LionAggregator(CONFIG)
    module.load_state_dict(parameters(tensors))
    late, middle, early = (tensors[f"input.vit_block{i}"] for i in (38, 28, 18))
    with torch.no_grad():
        fused = module.fusion_adapter(late, [middle, early])
        assert difference(fused, tensors["inter.fusion_adapter"]) <= float(facts["tolerance"])
        assert difference(module.ln_adapter(fused), tensors["inter.ln_adapter"]) <= float(facts["tolerance"])
        found = module(torch.stack([late, middle, early], 1))
    assert difference(found, tensors["output.inputs_t5"]) <= float(facts["tolerance"])


def test_others_may_have_another_number_of_tokens() -> None:
    module = FusionAdapter(1, 8, 2, 8).eval()
    with torch.no_grad():
        assert module(torch.randn(2, 5, 8), [torch.randn(2, 3, 8)]).shape == (2, 5, 8)


def test_tensors_are_those_of_the_module() -> None:
    with torch.device("meta"):
        module = build_projector("lion_aggregator", CONFIG)
    found = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    assert found == lion_aggregator_files.shapes(CONFIG)
    told = describe("lion_aggregator", CONFIG, "here")
    assert (told.reads.what, told.reads.layers, told.width, told.hidden_size) == ("blocks", (2, 1, 0), 24, 32)
    assert told.tokens(257) == 257


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": [3]}, "layers is [3], not a list of two blocks of the tower or more"),
        ({"layers": 3}, "layers is 3, not a list of two blocks of the tower or more"),
        ({"heads": 5}, "width 24 does not divide by 5 heads"),
        ({"inner": None}, "inner is None, not a whole number from 1 to 1,048,576"),
        ({"width": 1 << 30}, "width is 1073741824, not a whole number from 1 to 1,048,576"),
    ],
)
def test_configs_that_are_none(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        describe("lion_aggregator", {**CONFIG, **changes}, "here")
    assert str(caught.value) == f"here: config of the lion_aggregator projector: {told}"
