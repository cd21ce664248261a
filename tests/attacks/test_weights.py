"""Tensors of members: damaged, misnamed, of other shapes; and odd ones that are right, whose result is compared."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.attacks.harness import Attack, attack, hold, within
from tests.attacks.making import GOOD, Make, both
from tests.attacks.scenes import SLERP, changed, place, weights

UP = "model.layers.0.mlp.up_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
Tensors = dict[str, torch.Tensor]


def b(edit: Callable[[Tensors], Tensors | None]) -> Make:
    return weights("b", edit)


def having(**tensors: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    """One tensor of b after a function."""
    return b(lambda held: held | {key: change(held[key]) for key, change in tensors.items()})


def one(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    return having(**{key: change})


def more(key: str, tensor: torch.Tensor) -> Make:
    return b(lambda held: held | {key: tensor})


def all_as(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda held: {key: value.to(dtype) for key, value in held.items()}


def spoilt(value: float, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    def edit(held: Tensors) -> Tensors:
        held = all_as(dtype)(held)
        held[UP].view(-1)[9] = value
        return held

    return edit


def renamed(prefix: str) -> Make:
    return b(lambda held: {prefix + key: value for key, value in held.items()})


def without(*keys: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {key: value for key, value in held.items() if key not in keys}


def joined(held: Tensors) -> None:
    for n in range(2):
        at = f"model.layers.{n}.self_attn."
        held[f"{at}qkv_proj.weight"] = torch.cat([held.pop(f"{at}{one}_proj.weight") for one in "qkv"])


def scaled(factor: float) -> Callable[[Tensors], Tensors]:
    return lambda held: {key: value * factor for key, value in held.items()}


REFUSED: list[tuple[str, Make, str]] = [
    ("NaN in F32", b(spoilt(float("nan"), torch.float32)), "b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' of b holds nan at element 9 (the checkpoint is damaged; fuse writes nothing from it)"),
    ("NaN in BF16", b(spoilt(float("nan"), torch.bfloat16)), "b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' of b holds nan at element 9 (the checkpoint is damaged; fuse writes nothing from it)"),
    ("infinite in F16", b(spoilt(float("inf"), torch.float16)), "b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' of b holds inf at element 9 (the checkpoint is damaged; fuse writes nothing from it)"),
    ("-infinite in F64", b(spoilt(float("-inf"), torch.float64)), "b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' of b holds -inf at element 9 (the checkpoint is damaged; fuse writes nothing from it)"),
    ("32-bit integers", one(UP, lambda t: t.to(torch.int32)), "b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' has dtype I32, which cannot be merged (fuse merges F64, F32, F16, BF16)"),
    ("8-bit integers", one(UP, lambda t: t.to(torch.int8)), "b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' has dtype I8, which cannot be merged (fuse merges F64, F32, F16, BF16)"),
    ("true and false", one(UP, lambda t: t > 0), "b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' has dtype BOOL, which cannot be merged (fuse merges F64, F32, F16, BF16)"),
    ("complex numbers", one(UP, lambda t: t.to(torch.complex64)), "b/model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight': unknown dtype 'C64' (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)"),
    ("8-bit floats", b(all_as(torch.float8_e4m3fn)), "b/model.safetensors: tensor 'lm_head.weight': dtype F8_E4M3 is quantised and cannot be merged (use the unquantised checkpoint)"),
    ("a transposed matrix", one(UP, lambda t: t.T.contiguous()), "b: tensor 'model.layers.0.mlp.up_proj.weight' has shape [32, 48], but config.json makes it [48, 32] (F D)"),
    ("no rows", one(UP, lambda t: t[:0]), "b: tensor 'model.layers.0.mlp.up_proj.weight' has shape [0, 32], but config.json makes it [48, 32] (F D)"),
    ("a number for a matrix", one(UP, lambda t: t.sum()), "b: tensor 'model.layers.0.mlp.up_proj.weight' has shape [], but config.json makes it [48, 32] (F D)"),
    ("a norm too short", one("model.norm.weight", lambda t: t[1:].clone()), "b: tensor 'model.norm.weight' has shape [31], but config.json makes it [32] (D)"),
    ("a tensor less", b(without(UP)), "b: tensor 'model.layers.0.mlp.up_proj.weight' is missing: config.json promises 2 layers of llama"),
    ("no head where none is tied", b(without("lm_head.weight")), "b: tensor 'lm_head.weight' is missing: config.json promises 2 layers of llama"),
    ("a tensor more", more("model.layers.0.x.weight", torch.ones(2)), "b: tensor 'model.layers.0.x.weight' is not part of a llama language model"),
    ("a tensor of a third layer", more("model.layers.2.input_layernorm.weight", torch.ones(32)), "b: tensor 'model.layers.2.input_layernorm.weight' belongs to none of the 2 layers of config.json"),
    ("a buffer of another family", more("embeddings.position_ids", torch.arange(4)), "b: tensor 'embeddings.position_ids' is not part of a llama language model"),
    ("a LoRA beside the weights", more("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(2, 32)), "b: tensor 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight' is not part of a llama checkpoint (these are the names of a LoRA adapter; merge it into its base first)"),
    ("quantised beside the weights", more("model.layers.0.self_attn.q_proj.qweight", torch.ones(2, 32, dtype=torch.int32)), "b: tensor 'model.layers.0.self_attn.q_proj.qweight' is not part of a llama checkpoint (these are the names of quantised weights; merge the unquantised checkpoint)"),
    ("q, k and v in one", b(joined), "b: tensor 'model.layers.0.self_attn.qkv_proj.weight' is not part of a llama language model"),
    ("names behind model.", renamed("model."), "b: tensor 'model.lm_head.weight' is not part of a llama language model"),
    ("names behind language_model.", renamed("language_model."), "b: tensor 'language_model.lm_head.weight' is not part of a llama language model"),
    ("names of PEFT", renamed("base_model.model."), "b: tensor 'base_model.model.lm_head.weight' is not part of a llama checkpoint (these are the names of a LoRA adapter; merge it into its base first)"),
    ("names of a compiled model", renamed("_orig_mod."), "b: tensor '_orig_mod.lm_head.weight' is not part of a llama checkpoint (these are the names of a compiled model; save the model that was compiled)"),
    ("names of DataParallel", renamed("module."), "b: tensor 'module.lm_head.weight' is not part of a llama checkpoint (these are the names of a DataParallel wrapper; save its `.module`)"),
    ("another family of the same shapes", changed("b/config.json", model_type="mistral"), "b/config.json: a and b are not of one base: family is llama in a and mistral in b (members of one base agree in this)"),
    ("a family with other tensors", changed("b/config.json", model_type="qwen2"), "b: tensor 'model.layers.0.self_attn.q_proj.bias' is missing: config.json promises 2 layers of qwen2"),
    ("the host is tied and the guest is not", both(weights("a", without("lm_head.weight")), changed("a/config.json", tie_word_embeddings=True)), "a/config.json: b stores an output head, a uses its embedding as head (name the member with a head as `output.host`)"),
]  # fmt: skip
COMPUTED: list[tuple[str, str, Make, str]] = [
    ("slerp to zeros", SLERP, b(scaled(0)), "a/model.safetensors: slerp cannot merge tensor 'lm_head.weight': it is all zeros in b and not in a, so no arc joins the two (another method, or other parameters for it by a pattern table)"),
    ("slerp to the opposite", SLERP, lambda folder: (shutil.copy(folder / "a/model.safetensors", folder / "b/model.safetensors"), b(scaled(-1))(folder)), "a/model.safetensors: slerp cannot merge tensor 'lm_head.weight': it points in opposite directions in a and b (cosine -1.000000), so any arc fits (another method, or other parameters for it by a pattern table)"),
    ("sums beyond BF16", "members: {a: a, b: b}\nlanguage: {method: linear, weights: 1, normalize: false}\n", both(*(weights(m, lambda held: {k: torch.full_like(v, 3e38).bfloat16() for k, v in held.items()}) for m in "ab")), "output tensor 'lm_head.weight' is inf in BF16 at element 0 (computed as inf) (choose a wider output.dtype, or smaller weights)"),
    ("sums beyond F16", "members: {a: a, b: b}\nlanguage: {method: linear, weights: 1, normalize: false}\n", both(*(weights(m, lambda held: {k: torch.full_like(v, 6e4).half() for k, v in held.items()}) for m in "ab")), "output tensor 'lm_head.weight' is inf in F16 at element 0 (computed as 120000) (choose a wider output.dtype, or smaller weights)"),
]  # fmt: skip


@pytest.mark.parametrize("case", [Attack(name, make, 3, said) for name, make, said in REFUSED], ids=str)
def test_weights_that_cannot_be_merged(case: Attack, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    hold(case, tmp_path)


@pytest.mark.parametrize("case", COMPUTED, ids=lambda case: case[0])
def test_sums_that_cannot_be(case: tuple[str, str, Make, str], family: Path, tmp_path: Path) -> None:
    name, recipe, make, said = case
    place(tmp_path, family, recipe)
    hold(Attack(name, make, 3, said), tmp_path)


def padded(held: Tensors) -> Tensors:
    return held | {key: torch.cat([held[key], torch.zeros(8, 32)]) for key in TABLES}


def tied(member: str) -> Make:
    return both(weights(member, without("lm_head.weight")), changed(f"{member}/config.json", tie_word_embeddings=True))


# name, what is done, dtype of the output; each is right as it is, and the mean in float64 is its answer
ACCEPTED: list[tuple[str, Make, torch.dtype]] = [
    ("nothing", lambda folder: None, torch.float32),
    ("identical members", lambda folder: shutil.copy(folder / "a/model.safetensors", folder / "b/model.safetensors"), torch.float32),
    ("denormal numbers", both(*(weights(m, scaled(1e-41)) for m in "ab")), torch.float32),
    ("all zeros", b(scaled(0)), torch.float32),
    ("opposite numbers", lambda folder: (shutil.copy(folder / "a/model.safetensors", folder / "b/model.safetensors"), b(scaled(-1))(folder)), torch.float32),
    ("a guest in F16", b(all_as(torch.float16)), torch.float32),
    ("a guest in BF16", b(all_as(torch.bfloat16)), torch.float32),
    ("a guest in F64", b(all_as(torch.float64)), torch.float32),
    ("a host in BF16", weights("a", all_as(torch.bfloat16)), torch.bfloat16),
    ("a buffer of old releases", more("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)), torch.float32),
    ("a dtype in the config that is not stored", changed("a/config.json", dtype="float64"), torch.float32),
    ("rows of padding in the guest", both(b(padded), changed("b/config.json", vocab_size=72)), torch.float32),
    ("both tied", both(tied("a"), tied("b")), torch.float32),
]  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case[0])
def test_odd_and_right(case: tuple[str, Make, torch.dtype], family: Path, tmp_path: Path) -> None:
    _, make, dtype = case
    place(tmp_path, family, GOOD)
    make(tmp_path)
    ran = attack("merge recipe.yaml out --quiet", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    within(ran)
    mine, theirs, made = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b", "out"))
    assert made.keys() == mine.keys()
    for key, value in made.items():
        rows = len(mine[key])
        mean = (wide(mine[key]) + wide(theirs[key][:rows])) / 2
        assert value.dtype == dtype
        spacing = (
            torch.finfo(dtype).eps * np.abs(mean).max() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        )
        assert np.abs(wide(value) - mean).max() <= spacing


def wide(tensor: torch.Tensor) -> Any:
    return tensor.double().numpy()
