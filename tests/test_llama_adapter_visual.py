"""The visual side of LLaMA-Adapter v2: against timm's blocks under the authors' keys, and inside a prompt."""

from typing import Any

import pytest
import torch

from fuse.branches import llama_adapter_projector_files
from fuse.branches.llama_adapter_projector import LlamaAdapterProjector
from fuse.errors import RecipeError
from fuse.grafts.graft import Reading, Sight
from fuse.grafts.llama_adapter import LlamaAdapterGraft
from fuse.grafts.slots import slots_of
from fuse.importers import About
from fuse.importers.llama_adapter import sort_keys
from tests import tiny_text
from tests.official_adapters import LENGTH, Eyes, random
from tests.original_branches import difference

FEATURES, HOST, HEADS = 10, 32, 4


def file(official: Eyes, layers: int = 2) -> dict[str, torch.Tensor]:
    gates = {f"llama.layers.{i}.attention.gate": torch.full((1, HEADS, 1, 1), 0.5 + i) for i in range(layers)}
    return {**official.state_dict(), **gates, "adapter_query.weight": random(LENGTH * 2, HOST)}


def graft_of(official: Eyes) -> LlamaAdapterGraft:
    found = sort_keys(file(official), About(options={"visual_heads": HEADS}))
    assert found.graft and found.projector and not found.dropped
    assert found.projector.config == {"width": FEATURES, "hidden_size": HOST}
    assert llama_adapter_projector_files.shapes(found.projector.config) == {} == found.projector.tensors
    graft = LlamaAdapterGraft(found.graft.config)
    graft.load_state_dict(dict(found.graft.tensors))
    return graft.eval()


def reading(sights: dict[str, list[Sight]], rows: int, image: str | None = None) -> Reading:
    ids = torch.ones(rows, 4, dtype=torch.long)
    nothing: Any = None
    return Reading(ids, ids, ids * 0, torch.zeros(rows, 4, HOST), sights, nothing, nothing, image=image)


def sight(row: int, features: torch.Tensor) -> Sight:
    return Sight(row, features, torch.zeros(0, HOST), torch.zeros(0, dtype=torch.long))


def test_visual_prompts_are_those_of_the_authors_modules() -> None:
    official = Eyes(FEATURES).eval().double()
    graft = graft_of(official).double()
    features = torch.randn(2, 5, FEATURES, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        assert graft.visual is not None
        assert difference(graft.visual(features), official(features)) < 1e-12


def test_a_prompt_without_an_image_has_the_learned_prompts_alone() -> None:
    official = Eyes(FEATURES).eval().double()
    graft = graft_of(official).double()
    assert graft.looks
    features = torch.randn(2, 5, FEATURES, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        state = graft.read(reading({"clip": [sight(0, features[0]), sight(2, features[1])]}, 4))
        wanted = official(features)
    assert state["visual"].shape == (4, LENGTH, HOST)
    assert difference(state["visual"][[0, 2]], wanted) < 1e-12
    assert not state["visual"][[1, 3]].any()


def test_it_looks_at_the_branch_that_the_recipe_names_else_at_one_that_fits() -> None:
    graft = graft_of(Eyes(FEATURES))
    one, two = torch.ones(5, FEATURES), torch.zeros(5, FEATURES)
    sights = {"other": [sight(0, torch.ones(5, FEATURES + 1))], "one": [sight(0, one)], "two": [sight(0, two)]}
    with torch.no_grad():
        alone = [graft.read(reading({"x": [sight(0, features)]}, 1))["visual"] for features in (one, two)]
        assert torch.equal(graft.read(reading(sights, 1))["visual"], alone[0])
        assert torch.equal(graft.read(reading(sights, 1, "two"))["visual"], alone[1])
        assert not torch.equal(*alone)


def test_two_images_of_one_prompt_are_refused() -> None:
    graft = graft_of(Eyes(FEATURES))
    features = torch.ones(5, FEATURES)
    with pytest.raises(RecipeError) as caught:
        graft.read(reading({"clip": [sight(0, features), sight(1, features), sight(1, features)]}, 2))
    assert str(caught.value) == (
        "prompt 2 has 2 images, and LLaMA-Adapter v2 reads one (ask about one image at a time)"
    )


def test_each_row_and_its_beams_hear_their_own_image() -> None:
    graft = graft_of(Eyes(FEATURES)).double()
    host: Any = tiny_text.build("llama").double()
    graft.attach(slots_of(host))
    ids = torch.tensor([[3, 9, 4], [3, 9, 4]])
    visual = torch.randn(2, LENGTH, HOST, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def logits(rows: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        graft.state = {"visual": seen}
        with torch.no_grad():
            return host(rows).logits

    both = logits(ids, visual)
    assert difference(both[:1], logits(ids[:1], visual[:1])) < 1e-12
    assert difference(both[1:], logits(ids[1:], visual[1:])) < 1e-12
    assert difference(both[0], both[1]) > 1e-3
    assert difference(logits(ids.repeat_interleave(3, 0), visual), both.repeat_interleave(3, 0)) < 1e-12


def test_the_branch_gives_no_tokens() -> None:
    config = {"width": FEATURES, "hidden_size": HOST}
    assert LlamaAdapterProjector(config)(torch.ones(2, 5, FEATURES)).shape == (2, 0, HOST)
    assert llama_adapter_projector_files.tokens(config, 5) == 0
    assert llama_adapter_projector_files.reads(config).what == "projected"
    with pytest.raises(ValueError, match=r"^width is '10', not a whole number above 0$"):
        llama_adapter_projector_files.widths({"width": "10", "hidden_size": HOST})
