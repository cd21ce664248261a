"""Rows of routers that no training made: prompts against means in numpy, prototypes against a whole decomposition."""

from typing import Any

import numpy as np
import pytest
import torch

from fuse.grafts.mks2_files import configured, made, shapes
from fuse.grafts.mks2_rows import make_rows, prompt_rows, top_direction
from fuse.grafts.slots import slots_of
from tests.test_mks2 import Watched, basis, donor, grafted, host, logits, tensors_of

POSITIVE, NEGATIVE = ["w5 w9 w12", "w30 w7"], ["w40 w41 w3 w9", "w50"]


class Words:
    """w5 is token 5."""

    def __call__(self, text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        assert return_tensors == "pt"
        ids = [int(word[1:]) for word in text.split() if word != "-"]
        return {"input_ids": torch.tensor([ids], dtype=torch.long)}


def read_by(model: Any, text: str, number: int, residual: bool = False) -> np.ndarray:
    """[L, d]: what the MLP of a block of the first stack reads, or the residual stream before its norm."""
    kept = {}
    stack = next(iter(slots_of(model).values()))
    (stack.ffn_residual if residual else stack.ffn)(number, lambda x, y: kept.update(x=x) or y)
    logits(model, Words()(text, "pt")["input_ids"])
    stack.remove()
    return kept["x"][0].numpy()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "phi3"])
def test_rows_of_prompts(kind: str) -> None:
    model = host(kind)
    before = logits(model)
    weight, bias = prompt_rows(model, Words(), POSITIVE, NEGATIVE, [0, 1])
    assert torch.equal(logits(model), before)  # nothing is left behind
    for number in (0, 1):
        p, n = (np.mean([read_by(model, t, number).mean(0) for t in texts], 0) for texts in (POSITIVE, NEGATIVE))
        row = (p - n) / np.linalg.norm(p - n)
        np.testing.assert_allclose(weight[number].numpy(), [row, -row], rtol=0, atol=1e-12)
        np.testing.assert_allclose(bias[number].numpy(), [-row @ (p + n) / 2, row @ (p + n) / 2], rtol=0, atol=1e-12)
        scores = np.stack([p, n]) @ weight[number].numpy().T + bias[number].numpy()
        apart = np.linalg.norm(p - n) / 2
        np.testing.assert_allclose(scores, [[apart, -apart], [-apart, apart]], atol=1e-12)  # equal shares in the middle


def test_rows_of_prompts_in_an_encoder_and_a_decoder() -> None:
    weight, bias = prompt_rows(host("t5"), Words(), POSITIVE, NEGATIVE, [0, 1, 4])
    assert weight.shape == (3, 2, 32) and bias.shape == (3, 2)
    p, n = (np.mean([read_by(host("t5"), t, 1).mean(0) for t in texts], 0) for texts in (POSITIVE, NEGATIVE))
    np.testing.assert_allclose(weight[1, 0].numpy(), (p - n) / np.linalg.norm(p - n), rtol=0, atol=1e-12)


def test_rows_of_prompts_behind_a_norm_of_its_own() -> None:
    config = configured(donor(norm="rms"), {"router": "prompts", "prompts": {"positive": ["w5"], "negative": ["w6"]}})
    tensors = {k: v for k, v in tensors_of(config).items() if ".rows." not in k}
    model = host("llama")
    found = make_rows(config, {"prompts": {"positive": ["w5"], "negative": ["w6"]}}, tensors, basis(model), _none,
                      lambda: (model, Words()))  # fmt: skip
    assert list(found) == [*(f"layers.{n}.rows.weight" for n in (0, 1)), *(f"layers.{n}.rows.bias" for n in (0, 1))]
    gain = tensors["layers.1.norm.weight"].float().double().numpy()
    p, n = (
        h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * gain
        for h in (read_by(model, text, 1, residual=True)[0] for text in ("w5", "w6"))
    )
    wanted = (p - n) / np.linalg.norm(p - n)
    np.testing.assert_allclose(found["layers.1.rows.weight"][0].numpy(), wanted, rtol=0, atol=1e-6)
    all_of_it = tensors | {name: tensor.double() for name, tensor in found.items()}
    assert np.abs(Watched(model, grafted(config, all_of_it)).logits.numpy()).max() > 0


def test_prompts_that_tell_nothing() -> None:
    with pytest.raises(ValueError, match=r"^positive and negative prompts look the same to the host$"):
        prompt_rows(host("llama"), Words(), ["w5 w6"], ["w5 w6"], [0])
    with pytest.raises(ValueError, match=r"^prompt '-' has no tokens$"):
        prompt_rows(host("llama"), Words(), ["-"], ["w5"], [0])


def _none(name: str) -> torch.Tensor:
    raise AssertionError(f"{name} is not needed")


@pytest.mark.parametrize("shape", [(40, 32), (9, 32), (3, 5), (1, 6), (64, 200)])
def test_the_direction_that_a_matrix_stretches_most(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(shape[0]).normal(size=shape)
    found = top_direction(torch.from_numpy(matrix)).numpy()
    wanted = np.linalg.svd(matrix)[2][0]
    assert abs(abs(found @ wanted) - 1) < 1e-9
    assert found[np.abs(found).argmax()] > 0
    np.testing.assert_array_equal(found, top_direction(torch.from_numpy(-matrix)).numpy())


MATRICES = {
    "llama": ("model.layers.{}.mlp.gate_proj.weight", "model.layers.{}.mlp.up_proj.weight"),
    "phi3": ("model.layers.{}.mlp.gate_up_proj.weight",),
    "gpt2": ("transformer.h.{}.mlp.c_fc.weight",),
    "opt": ("model.decoder.layers.{}.fc1.weight",),
}


@pytest.mark.parametrize("kind", list(MATRICES))
def test_rows_of_arrow(kind: str) -> None:
    model = host(kind)
    state = model.state_dict()
    gated = kind in ("llama", "phi3")
    config = configured(donor(gated=gated), {"router": "arrow"})
    tensors = {k: v for k, v in tensors_of(config).items() if ".rows." not in k}
    found = make_rows(config, {}, tensors, basis(model), lambda name: state[name], _none)  # pyright: ignore
    assert list(found) == made(config)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()}.items() <= shapes(config).items()
    for number in (0, 1):
        mlp = np.concatenate([state[name.format(number)].numpy() for name in MATRICES[kind]])
        mlp = mlp.T if kind == "gpt2" else mlp
        names = ("gate", "up") if gated else ("up",)
        mine = np.concatenate([tensors[f"layers.{number}.{name}.weight"].numpy() for name in names])
        for row, matrix in zip(found[f"layers.{number}.rows.weight"].numpy(), (mine, mlp), strict=True):
            assert abs(abs(row @ np.linalg.svd(matrix)[2][0]) - 1) < 1e-6
