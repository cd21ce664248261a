"""The visual side of LLaMA-Adapter v2: against timm's blocks under the authors' keys, and inside a prompt."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from fuse.branches import llama_adapter_projector_files
from fuse.branches.llama_adapter_projector import LlamaAdapterProjector
from fuse.errors import RecipeError
from fuse.grafts.graft import Reading, Sight
from fuse.grafts.llama_adapter import LlamaAdapterGraft
from fuse.grafts.slots import slots_of
from fuse.importers import About
from fuse.importers.llama_adapter import sort_keys
from tests import tiny_text
from tests.original_branches import difference

WIDTH, FEATURES, HOST, LENGTH, HEADS = 24, 10, 32, 3, 4


class Official(nn.Module):
    """The modules of the authors' multimodal file that see, as its description names them."""

    def __init__(self) -> None:
        super().__init__()
        self.clip_proj, self.clip_proj_norm = nn.Linear(FEATURES, WIDTH), nn.LayerNorm(WIDTH)
        self.visual_query = nn.Embedding(LENGTH, WIDTH)
        norm = nn.LayerNorm  # as timm 0.3.2 has it, which the authors ask for; today's timm has another eps
        self.visual_blocks = nn.ModuleList(Block(WIDTH, HEADS, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(2))
        self.visual_proj, self.visual_proj_norm = nn.Linear(WIDTH, HOST), nn.LayerNorm(HOST)
        self.adapter_query = nn.Embedding(LENGTH * 2, HOST)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.4, generator=generator)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        seen = self.clip_proj_norm(self.clip_proj(features))
        both = torch.cat([self.visual_query.weight.repeat(len(features), 1, 1), seen], 1)
        for block in self.visual_blocks:
            both = block(both)
        return self.visual_proj_norm(self.visual_proj(both[:, :LENGTH]))


def file(official: Official, layers: int = 2) -> dict[str, torch.Tensor]:
    gates = {f"llama.layers.{i}.attention.gate": torch.full((1, HEADS, 1, 1), 0.5 + i) for i in range(layers)}
    return {**official.state_dict(), **gates}


def graft_of(official: Official) -> LlamaAdapterGraft:
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
    official = Official().eval().double()
    graft = graft_of(official).double()
    features = torch.randn(2, 5, FEATURES, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        assert graft.visual is not None
        assert difference(graft.visual(features), official(features)) < 1e-12


def test_a_prompt_without_an_image_has_the_learned_prompts_alone() -> None:
    official = Official().eval().double()
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
    graft = graft_of(Official())
    one, two = torch.ones(5, FEATURES), torch.zeros(5, FEATURES)
    sights = {"other": [sight(0, torch.ones(5, FEATURES + 1))], "one": [sight(0, one)], "two": [sight(0, two)]}
    with torch.no_grad():
        alone = [graft.read(reading({"x": [sight(0, features)]}, 1))["visual"] for features in (one, two)]
        assert torch.equal(graft.read(reading(sights, 1))["visual"], alone[0])
        assert torch.equal(graft.read(reading(sights, 1, "two"))["visual"], alone[1])
        assert not torch.equal(*alone)


def test_two_images_of_one_prompt_are_refused() -> None:
    graft = graft_of(Official())
    features = torch.ones(5, FEATURES)
    with pytest.raises(RecipeError) as caught:
        graft.read(reading({"clip": [sight(0, features), sight(1, features), sight(1, features)]}, 2))
    assert str(caught.value) == (
        "prompt 2 has 2 images, and LLaMA-Adapter v2 reads one (ask about one image at a time)"
    )


def test_each_row_and_its_beams_hear_their_own_image() -> None:
    graft = graft_of(Official()).double()
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
