"""SliME's sampler against the official code's numbers."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fuse.branches.slime_sampler import Resampler, ResamplerWithText, Router, Sampler, cosines, top_p
from fuse.errors import RecipeError
from tests.original_branches import (
    GOLDENS,
    canonical,
    difference,
    golden,
    set_heads,
    slime,
)


def loaded(
    module: nn.Module, name: str, outer: str, heads: int | None = None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The module with a golden's parameters, found by official key through the family's table."""
    tensors, facts = golden(name)
    found = {
        k.removeprefix(f"{outer.removeprefix('model.')}"): t for k, t in canonical(tensors, slime(), outer).items()
    }
    module.load_state_dict(found)
    set_heads(module, heads or facts["constructor"]["num_heads"])
    return module.eval(), tensors, facts


@pytest.mark.parametrize(
    ("name", "kv_width", "out_width"), [("slime_resampler", 20, 20), ("slime_resampler_plain", None, None)]
)
def test_resampler(name: str, kv_width: int | None, out_width: int | None) -> None:
    made = Resampler(3, 32, kv_width=kv_width, out_width=out_width)
    module, tensors, facts = loaded(made, name, "model.sampler.post_qformer.")
    with torch.no_grad():
        assert difference(module(tensors["input.features"]), tensors["output.out"]) <= float(facts["tolerance"])


def test_resampler_with_text() -> None:
    made = ResamplerWithText(3, 32, kv_width=20)
    module, tensors, facts = loaded(made, "slime_resampler_with_text", "model.sampler.post_qformer.")
    for i, mask in enumerate(tensors["input.text_mask"].bool()):
        with torch.no_grad():
            found = module(tensors["input.features"][i : i + 1], tensors["input.text"][i : i + 1, mask])
        assert difference(found[0], tensors["output.out"][i]) <= float(facts["tolerance"])
    with pytest.raises(RecipeError) as caught:
        module(tensors["input.features"])
    assert str(caught.value) == "a resampler that reads the text was given none"


def words(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return tensors["input.text_embedding"][tensors["input.text_mask"].bool()]


def test_router() -> None:
    module, tensors, facts = loaded(Router(32, 1.0), "slime_router_attention", "model.sampler.selector.")
    with torch.no_grad():
        found = module(tensors["input.local_features"], words(tensors))
    assert difference(found, tensors["output.probs"]) <= float(facts["tolerance"])


def test_cosines() -> None:
    tensors, facts = (
        load_file(GOLDENS / "slime_router_cosine.safetensors"),
        json.loads((GOLDENS / "slime_router_cosine.json").read_text()),
    )
    image = tensors["input.local_features"]
    assert difference(cosines(image, words(tensors)).sum(-1), tensors["output.score_masked"]) <= float(
        facts["tolerance"]
    )
    all_words = cosines(image, tensors["input.text_embedding"])
    assert difference(all_words.mean(-1), tensors["output.score_nomask"]) <= float(facts["tolerance"])
    sampler = Sampler(2, 16, 32, learned=False, p=0.5, temperature=0.5)
    assert torch.equal(sampler.select(image, words(tensors)), tensors["output.selected_topp0.5_temp0.5"])


@pytest.mark.parametrize("case", [f"selected_{i}" for i in range(9)])
def test_selection_keeps_the_same_tokens(case: str) -> None:
    tensors, facts = golden("slime_top_p")
    setting = facts["cases"][case]
    sampler = Sampler(2, 16, 32, learned=True, p=setting["topp"], temperature=setting["temp"])
    found = canonical(tensors, slime(), "model.sampler.")
    sampler.selector.load_state_dict({k.removeprefix("sampler.selector."): t for k, t in found.items()})
    set_heads(sampler, facts["constructor"]["num_heads"])
    image = tensors["input.local_features"]
    with torch.no_grad():
        chances = sampler.eval().selector(image, words(tensors))
        assert difference(chances, tensors[f"inter.router_probs_{case[-1]}"]) <= 2e-6
        assert top_p(chances, setting["topp"], setting["temp"]).tolist() == setting["kept"]
        assert torch.equal(sampler.select(image, words(tensors)), tensors[f"output.{case}"])
