"""Router `token_type`: the memory is heard at visual tokens, and words are left as they are bit by bit."""

from typing import Any

import numpy as np
import pytest
import torch

from fuse.grafts.graft import Reading
from tests.test_mks2 import IDS, Watched, donor, grafted, host, logits, memory, tensors_of

NUMBERS = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 2, 2, 2]])


def reading(numbers: torch.Tensor) -> Reading:
    none: Any = None
    return Reading(IDS, torch.ones_like(IDS), numbers, torch.zeros(2, 6, 32), {}, none, none)


@pytest.mark.parametrize("place", ["beside", "instead"])
def test_token_type_is_heard_at_visual_tokens_alone(place: str) -> None:
    config = donor(router="token_type", place=place)
    tensors = tensors_of(config)
    graft = grafted(config, tensors, 0.5)
    graft.state = graft.read(reading(NUMBERS))
    seen = Watched(host("llama"), graft)
    visual = NUMBERS.numpy() != 0
    plain = {name: tensor.numpy() for name, tensor in tensors.items()}
    for number in (0, 1):
        y, m = seen.y[number], memory(plain, number, seen.x[number])
        wanted = y + 0.5 * m if place == "beside" else 0.5 * y + 0.5 * m
        np.testing.assert_array_equal(seen.out[number][~visual], y[~visual])
        np.testing.assert_allclose(seen.out[number][visual], wanted[visual], rtol=1e-11, atol=1e-13)


def test_token_type_leaves_words_alone_bit_by_bit() -> None:
    """Prompts without images, tokens before the first visual one, and passes that go on from a cache."""
    config = donor(router="token_type")
    graft, model = grafted(config, tensors_of(config)), host("llama")
    before = logits(model)
    assert graft.looks and graft.read(reading(torch.zeros_like(IDS))) == {}
    assert torch.equal(Watched(model, graft).logits, before)
    graft.state = graft.read(reading(NUMBERS))
    found = Watched(model, graft).logits
    assert torch.equal(found[0, :1], before[0, :1]) and torch.equal(found[1, :3], before[1, :3])
    assert all(not torch.equal(found[row, column], before[row, column]) for row, column in ((0, 1), (0, 5), (1, 3)))
    graft.begins = False
    assert torch.equal(Watched(model, graft).logits, before)


def test_token_type_with_beams_and_words_behind_the_prompt() -> None:
    config = donor(router="token_type", layers=[1])
    graft, model = grafted(config, tensors_of(config)), host("llama")
    graft.state = graft.read(reading(NUMBERS))
    longer = torch.cat([IDS, IDS[:, :2]], 1).repeat_interleave(2, 0)  # two beams, two words said, read again as a whole
    seen = Watched(model, graft, longer)
    where = np.abs(seen.out[1] - seen.y[1]).max(-1) > 0
    told = np.pad(NUMBERS.numpy() != 0, ((0, 0), (0, 2))).repeat(2, 0)
    np.testing.assert_array_equal(where, told)


def test_token_type_leaves_a_decoder_alone() -> None:
    model = host("t5")
    config = donor(router="token_type", layers=[3, 4])  # blocks of the decoder
    graft, before = grafted(config, tensors_of(config)), logits(model)
    graft.state = graft.read(reading(NUMBERS))
    assert torch.equal(Watched(model, graft).logits, before)


def test_other_routers_need_no_prompt() -> None:
    config = donor()
    graft = grafted(config, tensors_of(config))
    assert not graft.looks and graft.read(reading(NUMBERS)) == {}
