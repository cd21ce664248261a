"""The document of `fuse inspect deltas` against a float64 oracle over whole checkpoints."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fuse.align.deltas.measure import bytes_of, measure
from fuse.align.deltas.modules import MODULES, ORDER, Place, place_of
from fuse.align.deltas.plan import delta_plan
from fuse.families.registry import TEXTS, text_module
from fuse.recipe_yaml import parse_recipe
from tests.members import perturbed, save_member, words

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MEMBERS = ("a", "b", "c")
ADDED = {"a": {"<x>": 60, "<y>": 61}, "b": {"<y>": 60, "<x>": 61}, "base": {"<x>": 60, "<y>": 61}}
Told = dict[str, Any]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and fine-tunes in bf16, c ten times as far as the others; and an adapter of rank 2."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    save_member(base, root / "base", dtype=torch.bfloat16)
    for seed, name in enumerate(MEMBERS):
        scale = 0.05 if name == "c" else 0.005
        save_member(perturbed(base.float(), seed, scale), root / name, dtype=torch.bfloat16)
    peft: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), LoraConfig(
        target_modules=["q_proj", "up_proj"], r=2, init_lora_weights=False,
    ))  # fmt: skip
    peft.save_pretrained(root / "lora")
    return root


def document(root: Path, recipe: str, **settings: Any) -> Told:
    found = measure(delta_plan(parse_recipe(root / "r.yaml", recipe)), **settings)
    return json.loads(json.dumps(found, allow_nan=False))


def over(root: Path, *members: str, language: str = "{method: task_arithmetic, weights: 0.5}", **settings: Any) -> Told:
    named = ", ".join(f"{name}: {name}" for name in members)
    return document(root, f"base: base\nmembers: {{{named}}}\nlanguage: {language}\n", **settings)


def weights(root: Path, name: str) -> dict[str, np.ndarray]:
    return {k: v.double().numpy() for k, v in load_file(root / name / "model.safetensors").items()}


def check(told: Told, base: list[np.ndarray], *members: list[np.ndarray]) -> None:
    """Lengths, angles and signs of what the tensors are, put end to end."""
    z, *own = (np.concatenate([tensor.ravel() for tensor in tensors]) for tensors in (base, *members))
    deltas = [x - z for x in own]
    np.testing.assert_allclose(told["norm"], [np.linalg.norm(d) for d in deltas], rtol=1e-10)
    np.testing.assert_allclose(told["base_norm"], [np.linalg.norm(z)] * len(own), rtol=1e-10)
    np.testing.assert_allclose(told["relative"], [np.linalg.norm(d) / np.linalg.norm(z) for d in deltas], rtol=1e-10)
    assert told["elements"] == len(z)
    for i, j in itertools.product(range(len(own)), repeat=2):
        x, y = deltas[i], deltas[j]
        both = (x != 0) & (y != 0)
        alike = np.mean(np.sign(x[both]) == np.sign(y[both]))
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert told["cosine"][i][j] == pytest.approx(cosine, abs=1e-12)
        assert told["sign_agreement"][i][j] == pytest.approx(alike, abs=1e-12)


def leading(delta: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    left, _, right = np.linalg.svd(delta)
    return left[:, :k], right[:k].T


def test_every_tensor_agrees_with_the_oracle(family: Path) -> None:
    told = over(family, "a", "b", "c", top=4)
    base, *own = (weights(family, name) for name in ("base", *MEMBERS))
    assert told["members"] == ["a", "b", "c"] and {one["name"] for one in told["tensors"]} == set(base)
    for one in told["tensors"]:
        name = one["name"]
        check(one, [base[name]], *([member[name]] for member in own))
        assert one["shape"] == list(base[name].shape) and one["matrices"] == (base[name].ndim == 2)
        if base[name].ndim == 1:
            assert "overlap_left" not in one
            continue
        deltas = [member[name] - base[name] for member in own]
        for i, delta in enumerate(deltas):
            squares = np.linalg.svd(delta, compute_uv=False) ** 2
            assert one["participation"][i] == pytest.approx(squares.sum() ** 2 / (squares**2).sum(), rel=1e-5)
            assert one["energy"][i] == pytest.approx(squares[:4].sum() / squares.sum(), rel=1e-5)
        (u, v), (s, t) = (leading(delta, 4) for delta in (deltas[0], deltas[2]))
        assert one["overlap_left"][0][2] == pytest.approx(((u.T @ s) ** 2).sum() / 4, abs=1e-5)
        assert one["overlap_right"][0][2] == pytest.approx(((v.T @ t) ** 2).sum() / 4, abs=1e-5)
        rows, width = delta.shape
        assert (one["chance_left"][0][1], one["chance_right"][0][1]) == (4 / rows, 4 / width)


def test_groups_are_of_their_tensors_end_to_end(family: Path) -> None:
    told = over(family, "a", "c")
    base, *own = (weights(family, name) for name in ("base", "a", "c"))

    def holds(group: Told, fits: Callable[[str], bool]) -> None:
        names = [name for name in base if fits(name)]
        names = [name for name in names if base[name].ndim == 2] or names  # norms count among themselves
        assert group["tensors"] == len(names) > 0
        check(group, [base[n] for n in names], *([member[n] for n in names] for member in own))

    holds(told["overall"], lambda name: True)
    assert [row["part"] for row in told["parts"]] == ["language"]
    modules = {row["module"]: row for row in told["modules"]}
    assert list(modules) == ["embedding", "q", "k", "v", "o", "gate", "up", "down", "norm", "head"]
    holds(modules["up"], lambda name: "up_proj" in name)
    holds(modules["norm"], lambda name: "norm" in name)
    layers = {row["layer"]: row for row in told["layers"]}
    assert list(layers) == [0, 1, 2]
    holds(layers[1], lambda name: ".layers.1." in name)
    cells = {(row["layer"], row["module"]): row for row in told["cells"]}
    holds(cells[2, "down"], lambda name: name == "model.layers.2.mlp.down_proj.weight")
    holds(cells[None, "head"], lambda name: name == "lm_head.weight")
    of_two = [one["overlap_left"][0][1] for one in told["tensors"] if ".layers.1." in one["name"] and one["matrices"]]
    assert len(of_two) == layers[1]["matrices"] == 7
    assert layers[1]["overlap_left"][0][1] == pytest.approx(np.mean(of_two))


def test_maps_are_the_cells(family: Path) -> None:
    told = over(family, "a", "b", "c")
    (drawn,) = told["maps"]
    assert (drawn["part"], drawn["stack"], drawn["layers"]) == ("language", "model.layers", [0, 1, 2])
    assert drawn["modules"] == ["q", "k", "v", "o", "gate", "up", "down", "norm"]
    assert drawn["pairs"] == [[0, 1], [0, 2], [1, 2]]
    cells = {(row["layer"], row["module"]): row for row in told["cells"]}
    for (n, layer), (m, module) in itertools.product(enumerate(drawn["layers"]), enumerate(drawn["modules"])):
        cell = cells[layer, module]
        assert [of[n][m] for of in drawn["relative"]] == cell["relative"]
        assert [of[n][m] for of in drawn["cosine"]] == [cell["cosine"][i][j] for i, j in drawn["pairs"]]
        wanted = [cell["overlap_left"][i][j] for i, j in drawn["pairs"]] if module != "norm" else [None] * 3
        assert [of[n][m] for of in drawn["overlap_left"]] == wanted


def test_rows_of_tables_follow_their_tokens(tmp_path: Path) -> None:
    """Tokens at other ids in the base and in a member: rows are compared with the rows of the same token."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    for seed, (name, added) in enumerate(ADDED.items()):
        save_member(perturbed(model, seed), tmp_path / name, words(60), added)
    told = over(tmp_path, "a", "b")
    base, a, b = (weights(tmp_path, name) for name in ("base", "a", "b"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        one = next(one for one in told["tensors"] if one["name"] == name)
        mine, theirs = list(range(62)), [*range(60), 61, 60]
        check(one, [base[name][mine]], [a[name][mine]], [b[name][theirs]])
        assert one["shape"] == [62, 32]
        u, s = (leading(d, 8)[0] for d in (a[name][mine] - base[name][mine], b[name][theirs] - base[name][mine]))
        assert one["overlap_left"][0][1] == pytest.approx(((u.T @ s) ** 2).sum() / 8, abs=1e-4)


def test_an_adapter_has_as_many_directions_as_its_rank(family: Path) -> None:
    told = document(family, (
        "base: base\nmembers: {a: a, l: {base: base, adapter: lora}}\n"
        "language: {method: task_arithmetic, weights: 0.5}\n"
    ))  # fmt: skip
    for one in told["tensors"]:
        if one["module"] in {"q", "up"}:
            assert one["participation"][1] <= 2 + 1e-4 and one["energy"][1] == pytest.approx(1)
            assert one["chance_left"][1][1] == 2 / one["shape"][0]
            assert one["changed"][1] > 0.99
        else:
            assert one["norm"][1] == 0 and one["cosine"][0][1] is None


def test_a_method_without_a_base_is_measured_over_it_all_the_same(family: Path) -> None:
    wanted = over(family, "a", "b")
    for language in (
        "{method: linear, weights: {a: 3, b: 1}}",
        "{method: slerp, t: 0.3}",
        "{method: ties, weights: 1}",
    ):
        assert over(family, "a", "b", language=language)["overall"] == wanted["overall"], language
    told = document(family, (
        "base: base\nmembers: {a: a, b: b}\nlanguage: {method: linear, weights: {a: 1}, embeddings: b}\n"
    ))  # fmt: skip
    assert told["members"] == ["a"] and len(told["verdicts"]) == 1
    assert {row["module"] for row in told["modules"]} == {"q", "k", "v", "o", "gate", "up", "down", "norm"}


def test_layers_of_one_member_each(family: Path) -> None:
    """A stack: what a member has no part in does not count for it, and a pair that never meets has no angle."""
    language = "{method: passthrough, layers: [{a: [0, 2]}, {b: [1, 3]}]}"
    told = over(family, "a", "b", language=language)
    assert [row["layer"] for row in told["layers"]] == [0, 1, 2, 3]
    assert told["overall"]["cosine"] == [[pytest.approx(1), None], [None, pytest.approx(1)]]
    assert told["layers"][0]["relative"][1] is None and told["layers"][3]["relative"][0] is None
    base, a, b = (weights(family, name) for name in ("base", "a", "b"))
    name = "model.layers.1.mlp.up_proj.weight"
    given = {one["name"]: one for one in told["tensors"]}
    assert given[name]["norm"][0] == pytest.approx(np.linalg.norm(a[name] - base[name]))
    assert given[name.replace("1", "2")]["norm"][1] == pytest.approx(np.linalg.norm(b[name] - base[name]))
    assert told["weights"]["equal"] == {"weights": {"a": 0.5, "b": 0.5}, "length": None}


def test_the_base_under_another_name(family: Path) -> None:
    told = document(family, (
        "base: base\nmembers: {a: a, same: base}\nlanguage: {method: task_arithmetic, weights: 0.5}\n"
    ))  # fmt: skip
    assert told["overall"]["norm"][1] == 0 == told["overall"]["changed"][1]
    assert told["weights"]["balanced"]["weights"] == {"a": 1.0}
    assert told["verdicts"][0]["text"] == "same is the base, so it adds nothing"


def test_suggested_weights(family: Path) -> None:
    told = over(family, "a", "c")
    base, a, c = (
        np.concatenate([t.ravel() for t in weights(family, n).values() if t.ndim == 2]) for n in ("base", "a", "c")
    )
    balanced = told["weights"]["balanced"]["weights"]
    one, other = np.linalg.norm(a - base), np.linalg.norm(c - base)
    assert sum(balanced.values()) == pytest.approx(1)
    assert balanced["a"] * one == pytest.approx(balanced["c"] * other)
    merged = balanced["a"] * (a - base) + balanced["c"] * (c - base)
    assert told["weights"]["balanced"]["length"] == pytest.approx(np.linalg.norm(merged) / np.linalg.norm(base))
    half = np.linalg.norm((a + c) / 2 - base) / np.linalg.norm(base)
    assert told["weights"]["equal"] == {"weights": {"a": 0.5, "c": 0.5}, "length": pytest.approx(half)}


def test_progress_tells_of_every_byte(family: Path) -> None:
    plan = delta_plan(parse_recipe(
        family / "r.yaml", "base: base\nmembers: {a: a, b: b}\nlanguage: {method: ties, weights: 1}\n"
    ))  # fmt: skip
    told: list[int] = []
    measure(plan, progress=told.append)
    stored = sum(
        load.nbytes for name in ("base", "a", "b") for load in load_file(family / name / "model.safetensors").values()
    )
    assert sum(told) == bytes_of(plan) == stored


def test_numbers_too_far_apart_are_refused(family: Path, tmp_path: Path) -> None:
    from fuse.errors import CheckpointError

    for name in ("base", "a"):
        tensors = load_file(family / name / "model.safetensors")
        tensors["model.norm.weight"] = torch.full((32,), 3e38 if name == "a" else -3e38).bfloat16()
        (tmp_path / name).mkdir()
        for file in (family / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        over(tmp_path, "a")
    assert str(error.value) == (
        f"{tmp_path / 'a' / 'model.safetensors'}: tensor 'model.norm.weight' of a is 3.3987e+39 away from the base's "
        "(that is too far to measure)"
    )


PLACES = {
    ("language", "model.layers.3.self_attn.q_proj.weight"): ("model.layers", 3, "q"),
    ("language", "model.layers.3.self_attn.q_proj.bias"): ("model.layers", 3, "q"),
    ("language", "model.layers.0.self_attn.q_norm.weight"): ("model.layers", 0, "norm"),
    ("language", "model.layers.7.post_attention_layernorm.weight"): ("model.layers", 7, "norm"),
    ("language", "model.layers.0.mlp.gate_up_proj.weight"): ("model.layers", 0, "gate_up"),
    ("language", "model.layers.0.self_attn.qkv_proj.weight"): ("model.layers", 0, "qkv"),
    ("language", "model.layers.3.cross_attn.o_proj.weight"): ("model.layers", 3, "o"),
    ("language", "model.layers.3.cross_attn_mlp_gate"): ("model.layers", 3, "other"),
    ("language", "model.embed_tokens.weight"): ("", None, "embedding"),
    ("language", "model.norm.weight"): ("", None, "norm"),
    ("language", "lm_head.weight"): ("", None, "head"),
    ("language", "transformer.h.11.attn.c_attn.weight"): ("transformer.h", 11, "qkv"),
    ("language", "transformer.h.11.attn.c_proj.bias"): ("transformer.h", 11, "o"),
    ("language", "transformer.h.11.mlp.c_proj.weight"): ("transformer.h", 11, "down"),
    ("language", "transformer.h.11.mlp.c_fc.weight"): ("transformer.h", 11, "up"),
    ("language", "transformer.h.11.ln_1.weight"): ("transformer.h", 11, "norm"),
    ("language", "transformer.wpe.weight"): ("", None, "position"),
    ("language", "transformer.ln_f.bias"): ("", None, "norm"),
    ("language", "model.decoder.layers.2.self_attn.out_proj.weight"): ("model.decoder.layers", 2, "o"),
    ("language", "model.decoder.layers.2.fc2.weight"): ("model.decoder.layers", 2, "down"),
    ("language", "model.decoder.project_in.weight"): ("", None, "other"),
    ("language", "shared.weight"): ("", None, "embedding"),
    ("language", "encoder.block.1.layer.0.SelfAttention.k.weight"): ("encoder.block", 1, "k"),
    ("language", "decoder.block.1.layer.2.DenseReluDense.wi_0.weight"): ("decoder.block", 1, "gate"),
    ("language", "decoder.block.1.layer.2.DenseReluDense.wo.weight"): ("decoder.block", 1, "down"),
    ("language", "decoder.block.1.layer.1.EncDecAttention.o.weight"): ("decoder.block", 1, "o"),
    ("language", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"): (
        "encoder.block",
        0,
        "position",
    ),
    ("encoder", "vision_tower.encoder.layers.5.mlp.fc1.weight"): ("vision_tower.encoder.layers", 5, "up"),
    ("encoder", "visual.blocks.5.attn.proj.weight"): ("visual.blocks", 5, "o"),
    ("projector", "multi_modal_projector.linear_1.weight"): ("", None, "projector"),
    ("projector", "model.mm_projector.2.weight"): ("", None, "projector"),
}


@pytest.mark.parametrize(("part", "canonical"), PLACES)
def test_places(part: str, canonical: str) -> None:
    assert place_of(part, canonical) == Place(part, *PLACES[part, canonical])


def test_every_family_has_its_modules() -> None:
    """No tensor of a language model that fuse knows is of an unknown type, but for gates and projections of width."""
    others = set()
    for model_type in TEXTS:
        family = text_module(model_type, "")
        for name in {**family.tensors, **family.optional}:
            canonical = name.replace("{n}", "0").replace("{m}", "0").replace("{s}", "0").replace("{c}", "0")
            place = place_of("language", canonical)
            others |= {canonical} if place.module == "other" else set()
    assert others == {
        "model.layers.0.cross_attn_attn_gate", "model.layers.0.cross_attn_mlp_gate",
        "model.decoder.project_in.weight", "model.decoder.project_out.weight",
    }  # fmt: skip
    assert set(ORDER) == set(MODULES)
