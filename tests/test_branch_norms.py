"""The norm of a branch's tokens: scaled by one number an image, held against float64 numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.model.norms import ROWS, embedding_norm, mean_norm, scaled
from tests.test_fused_model import fused, picture

torch.set_num_threads(1)
TEXT = "w5 {0} w6 {0} w7"
SIZES = [((60, 40), 1), ((30, 50), 2)]


def read(model: Any, ours: Any) -> Any:
    images = [picture(size, seed) for size, seed in SIZES]
    with torch.no_grad():
        return model.read(**ours(images=images, text=[TEXT.format(ours.image_token)]))


def wide(tokens: torch.Tensor) -> np.ndarray:
    return tokens.double().numpy()


def norm_of(tokens: np.ndarray) -> float:
    return float(np.sqrt((tokens**2).sum(-1)).mean())


@given(st.integers(1, 9), st.integers(1, 6), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_one_number_for_all_tokens(n: int, width: int, target: float, seed: int) -> None:
    tokens = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)))
    found = scaled(tokens, torch.tensor(target, dtype=torch.float64))
    np.testing.assert_allclose(wide(found), wide(tokens) * target / norm_of(wide(tokens)), rtol=1e-12)
    np.testing.assert_allclose(float(mean_norm(found)), target, rtol=1e-12)


def test_what_has_no_norm_stays_as_it_is() -> None:
    ones, zeros, nothing = torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(0, 3)
    assert torch.equal(scaled(zeros, mean_norm(ones)), zeros)
    assert torch.equal(scaled(ones, mean_norm(zeros)), ones)
    assert torch.equal(scaled(ones, mean_norm(nothing)), ones)
    assert scaled(nothing, mean_norm(ones)).shape == (0, 3)


def test_half_precision_is_computed_in_single() -> None:
    """A sum of squares that float16 does not hold."""
    tokens = torch.full((2, 64), 300.0, dtype=torch.float16)
    found = scaled(tokens, torch.tensor(8.0))
    assert found.dtype == torch.float16 and torch.equal(found, torch.ones_like(found))


def test_the_norm_of_words_leaves_zero_rows_out() -> None:
    weight = np.random.default_rng(0).normal(size=(2 * ROWS + 5, 3))
    weight[[1, ROWS, 2 * ROWS + 4]] = 0
    embed = torch.nn.Embedding.from_pretrained(torch.from_numpy(weight))
    found = float(embedding_norm(embed, len(weight), torch.device("cpu")))
    assert abs(found - norm_of(weight[weight.any(1)])) < 1e-6


@pytest.mark.parametrize("prune", ["none", "pool", "norm", "similarity"])
def test_match_is_the_first_branchs_norm_in_every_image(prune: str) -> None:
    """What is pruned is chosen as without; the kept tokens have the norm of the first branch's tokens."""
    budget = () if prune == "none" else (("max_tokens", 3), ("prune", prune))
    plain = read(*fused("a=llava:1", "b=llava_next:2", "c=vipllava:3", b=budget))
    matched = read(*fused("a=llava:1", "b=llava_next:2", "c=vipllava:3", b=(*budget, ("norm", "match"))))
    factors = []
    for i in range(len(SIZES)):
        a, b = (wide(plain.seen[name][i].tokens) for name in "ab")
        factors.append(norm_of(a) / norm_of(b))
        found = matched.seen["b"][i]
        np.testing.assert_allclose(wide(found.tokens), b * factors[-1], rtol=1e-5, atol=1e-7)
        assert torch.equal(found.index, plain.seen["b"][i].index)
        for name in "ac":
            assert torch.equal(matched.seen[name][i].tokens, plain.seen[name][i].tokens)
    assert abs(factors[0] - factors[1]) > 1e-4, "every image has a number of its own"
    visual = torch.cat([matched.seen[name][i].tokens for i in range(len(SIZES)) for name in "abc"])
    assert torch.equal(matched.embeds[matched.visual], visual), "the prompt holds the scaled tokens"


def test_match_follows_a_first_branch_that_is_scaled_itself() -> None:
    found = read(*fused("a=llava:1", "b=llava_next:2", a=(("norm", "embeddings"),), b=(("norm", "match"),)))
    for one, two in zip(found.seen["a"], found.seen["b"], strict=True):
        np.testing.assert_allclose(norm_of(wide(two.tokens)), norm_of(wide(one.tokens)), rtol=1e-6)


@pytest.mark.parametrize(("host", "factor"), [("llava", 1.0), ("gemma3", 32**0.5)])
def test_embeddings_is_the_norm_of_words_as_the_host_reads_them(host: str, factor: float) -> None:
    """Gemma multiplies its words by the root of their width; one row is zeroed and others are changed in place."""
    model, ours = fused(f"a={host}:1", "b=llava:2", b=(("norm", "embeddings"),))
    weight = model.get_input_embeddings().weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[10:] *= 3
        rows = wide(weight.detach())
        wanted = norm_of(rows[rows.any(1)]) * factor
        for seen in read(model, ours).seen["b"]:
            np.testing.assert_allclose(norm_of(wide(seen.tokens)), wanted, rtol=1e-5)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_none_is_bit_identical() -> None:
    """Also with the words for what is so anyway."""
    said = (("norm", "none"), ("positions", "continued"), ("separator", None))
    images = [picture(size, seed) for size, seed in SIZES]
    found = []
    for options in ((), said):
        model, ours = fused("a=llava:1", "b=llava_next:2", b=options)
        batch = ours(images=images, text=[TEXT.format(ours.image_token)])
        assert not [key for key in batch if key.endswith("edges")]
        with torch.no_grad():
            found.append((batch["input_ids"], model(**batch).logits))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_gradients_reach_a_branch_through_its_norm() -> None:
    model, ours = fused("a=llava:1", "b=llava:2", b=(("norm", "match"),))
    batch = ours(images=[picture((60, 40))], text=["<image> w5"])
    weight = model.branches["b"].multi_modal_projector.linear_2.weight
    try:
        weight.requires_grad_(True)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.abs().max() > 0
    finally:
        weight.requires_grad_(False)
        weight.grad = None
