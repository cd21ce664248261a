"""Fits of bridges against numpy in float64, their R2, what folds exactly, and what is refused before any weight."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fuse.anatomy import Member, open_member
from fuse.errors import CheckpointError
from fuse.grafts.bridge_files import bridge_config, crossing, layer_map, shapes
from fuse.grafts.bridge_fit import PENALTIES, WRITING, fit, fits, held_out, r2, shared_rows
from fuse.grafts.bridge_map import Crossing
from fuse.grafts.bridge_rows import Fit, load, make_bridge, why_poor
from fuse.grafts.bridge_states import pair
from tests import tiny_text
from tests.members import save_member
from tests.rotated_hosts import turn

MKS2 = {
    "hidden_size": 32, "inner_size": 12, "layers": [1], "activation": "silu", "gated": True, "bias": True,
    "norm": "host", "place": "beside", "router": "additive",
}  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("narrow", "wide"), [(6, 6), (4, 7), (7, 4)])
def test_procrustes_is_the_best_rotation(narrow: int, wide: int) -> None:
    y, x = drawn(40, narrow) @ drawn(narrow, narrow, seed=3) + 2, drawn(40, wide, seed=1) - 1
    found = fit(y, x, "procrustes")
    centred = (y - y.mean(0)).numpy(), (x - x.mean(0)).numpy()
    left, _, right = np.linalg.svd(centred[0].T @ centred[1], full_matrices=False)
    size = np.linalg.norm(centred[0]) / np.linalg.norm(centred[1] @ (left @ right).T)
    assert np.allclose(found.down, size * left @ right)
    assert np.allclose(found.up, (left @ right).T / size)
    assert found.size == pytest.approx(size)
    assert np.allclose(found.offset, y.mean(0).numpy() - found.down.numpy() @ x.mean(0).numpy())
    assert torch.allclose(x.mean(0) @ found.down.T + found.offset, y.mean(0))
    assert torch.allclose(y.mean(0) @ found.up.T + found.up_offset, x.mean(0))
    small = min(narrow, wide)
    turns = found.down @ found.down.T if narrow == small else found.down.T @ found.down
    assert torch.allclose(turns, torch.eye(small, dtype=torch.float64) * size**2)


def test_a_rotation_with_a_size_and_a_shift_is_found() -> None:
    axes, y = turn(6), drawn(50, 6)
    x = (y - 1) @ axes * 0.25
    found = fit(y, x, "procrustes")
    assert torch.allclose(found.down, 4 * axes)
    assert torch.allclose(found.offset, torch.ones(6, dtype=torch.float64))
    assert fits(found, y, x) == (pytest.approx(1, abs=1e-12), pytest.approx(1, abs=1e-12))
    again = fit(y.float(), x.float(), "procrustes")
    assert torch.allclose(again.down, found.down, atol=1e-5)
    level = fit(y - y.mean(0) + 3, x - x.mean(0) + 3, "procrustes", centred=False)
    assert torch.equal(level.offset, torch.zeros(6, dtype=torch.float64))


def test_ridge_takes_the_penalty_that_serves_rows_left_out_best() -> None:
    x = drawn(60, 8)
    y = x[:, :5] @ drawn(5, 5, seed=1) + 0.5 * drawn(60, 5, seed=2)
    found = fit(y, x, "ridge")
    for given, wanted, made, penalties in ((x, y, found.down, PENALTIES), (y, x, found.up, WRITING)):
        a, b = (given - given.mean(0)).numpy(), (wanted - wanted.mean(0)).numpy()
        out = np.arange(60) % 5 == 4

        def solved(rows: Any, penalty: float, a: Any = a, b: Any = b) -> Any:
            inner = a[rows].T @ a[rows]
            return np.linalg.solve(
                inner + penalty * np.trace(inner) / len(inner) * np.eye(len(inner)), a[rows].T @ b[rows]
            )

        errors = [((b[out] - a[out] @ solved(~out, penalty)) ** 2).sum() for penalty in penalties]
        best = penalties[int(np.argmin(errors))]
        assert np.allclose(made, solved(slice(None), best).T, atol=1e-10)
    assert found.size is None


def test_r2_of_numpy() -> None:
    y, guess = drawn(30, 4), drawn(30, 4, seed=1)
    wanted = 1 - ((y - guess).numpy() ** 2).sum() / ((y - y.mean(0)).numpy() ** 2).sum()
    assert r2(guess, y) == pytest.approx(wanted)
    assert r2(y, y) == 1
    assert r2(y.mean(0).expand_as(y), y) == pytest.approx(0)
    constant = torch.ones(3, 2)
    assert (r2(constant, constant), r2(constant + 1, constant)) == (1, 0)


def test_every_fifth_text_is_held_out() -> None:
    assert held_out(torch.tensor([0, 3, 4, 4, 5, 9])).tolist() == [False, False, True, True, False, True]


def test_tokens_are_shared_across_spellings_of_a_space() -> None:
    source = [("\u2581dog", 1), ("dog", 2), ("cat", 3), ("\u2581\u2581", 4)]
    target = [("\u0120dog", 10), ("cat", 11), ("bird", 12), (" dog", 13)]
    assert shared_rows(source, target) == ([3], [11])  # the target says " dog" twice
    assert shared_rows(source, target[:3]) == ([1, 3], [10, 11])


@pytest.mark.parametrize(
    ("layers", "onto", "wanted"),
    [(2, 4, [0, 3]), (4, 2, [0, 0, 1, 1]), (5, 5, [0, 1, 2, 3, 4]), (1, 3, [2]), (3, 1, [0, 0, 0])],
)
def test_a_layer_stands_for_the_one_at_its_relative_depth(layers: int, onto: int, wanted: list[int]) -> None:
    assert layer_map(layers, onto) == wanted


def crossing_of(norms: dict[str, str], ridge: bool = False) -> Crossing:
    bridge = {
        "method": "ridge" if ridge else "procrustes", "width": 4, "host_width": 7, "norm_eps": 1e-5, "normed": True,
        "stacks": {}, "maps": ["language.0.ffn"], **norms,
    }  # fmt: skip
    tensors = {key.rpartition(".")[2]: shape for key, shape in shapes(bridge).items()}
    made = Crossing(bridge, tensors).double()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=number))
    return made


@pytest.mark.parametrize("ridge", [True, False])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_map_by_hand(kind: str, ridge: bool) -> None:
    made, x, y = crossing_of({"norm": kind, "host_norm": kind}, ridge), drawn(3, 7, seed=20), drawn(3, 4, seed=21)
    assert made.up is not None if ridge else made.up is None
    up = made.up if made.up is not None else made.down.T / made.size**2
    with torch.no_grad():
        assert torch.allclose(made(x, "turn_in"), x @ made.down.T)
        assert torch.allclose(made(x, "state_in"), x @ made.down.T + made.offset)
        assert torch.allclose(made(y, "turn_out"), y @ up.T)
        wanted = y @ up.T + made.up_offset if ridge else (y - made.offset) @ up.T
        assert torch.allclose(made(y, "state_out"), wanted)
        if kind == "layer":
            wanted = functional.layer_norm(y, (4,), made.gain, made.bias, 1e-5)
        else:
            wanted = functional.rms_norm(y, (4,), made.gain, 1e-5)
        assert torch.allclose(made(y, "norm"), wanted)
        assert torch.allclose(made(y, "behind_turn_out"), (y / made.gain) @ up.T * made.host_gain)
        shifts = (made.bias, made.host_bias) if kind == "layer" else (0, 0)
        wanted = ((y - shifts[0]) / made.gain) @ up.T * made.host_gain + shifts[1]
        assert torch.allclose(made(y, "behind_state_out"), wanted)
        unit = (x - shifts[1]) / made.host_gain
        own = unit @ made.down.T
        own = own - own.mean(-1, keepdim=True) if kind == "layer" else own
        size = (unit.square().mean(-1) / own.square().mean(-1)).sqrt()[:, None]
        assert torch.allclose(made(x, "behind_in"), own * size * made.gain + shifts[0])
        assert made(x, "behind_in").isfinite().all()


def test_a_gain_of_zero_hides_what_comes_before_it() -> None:
    made = crossing_of({"norm": "rms", "host_norm": "rms"})
    with torch.no_grad():
        made.gain[1] = made.host_gain[2] = 0
        x, y = drawn(3, 7), drawn(3, 4)
        wanted = made(torch.where(torch.arange(4) == 1, 0, y), "behind_turn_out")
        assert torch.equal(made(y, "behind_turn_out"), wanted)
        assert made(x, "behind_in").isfinite().all()
        assert made(torch.zeros(1, 7, dtype=torch.float64), "behind_in").isfinite().all()


def test_the_worst_map_is_named() -> None:
    found = [Fit("language.0.ffn", 0.9, 0.8, 10), Fit("language.1.ffn", 0.2, 0.6, 10)]
    assert why_poor(found[:1], 0.5) == ""
    assert why_poor(found, 0.5) == (
        "the bridge for language.1.ffn has R2 0.200 on held-out data (reading), and 0.5 is asked for"
    )
    assert why_poor([Fit("embedding", 0.9, -1.25, 10)], 0.5) == (
        "the bridge for embedding has R2 -1.250 on held-out data (writing), and 0.5 is asked for"
    )
    assert why_poor(found, 0.2) == ""


def member(folder: Path, kind: str = "llama", **settings: Any) -> Member:
    save_member(tiny_text.build(kind, **settings), folder)
    return open_member(folder.name, str(folder), revision=None, relative_to=Path())


CANNOT = {
    "lora": ("lora", {}, "it changes single projections or norms of its host, which no bridge maps"),
    "norms": ("llama_adapter", {"norms": ["ffn"]}, "it changes single projections or norms of its host, which no bridge maps"),
    "bias": (
        "llama_adapter", {"linears": {"q": {"rank": 0, "bias": True}}},
        "it changes single projections or norms of its host, which no bridge maps",
    ),
    "low rank": (
        "mks2", MKS2 | {"lora": {"mlp": 4, "memory": 0}},
        "it changes single projections of its host's MLP, which no bridge maps",
    ),
    "unknown": ("clay", {}, "nothing is known of how a graft of kind clay crosses to another basis"),
}  # fmt: skip


@pytest.mark.parametrize("name", CANNOT)
def test_a_graft_that_cannot_cross(name: str) -> None:
    kind, config, told = CANNOT[name]
    with pytest.raises(ValueError) as error:
        crossing(kind, config)
    assert str(error.value) == told


def test_hosts_between_which_nothing_crosses(tmp_path: Path) -> None:
    llama, t5 = member(tmp_path / "llama"), member(tmp_path / "t5", "t5")
    cohere = member(tmp_path / "cohere", "cohere")
    adapter = {"depth": 2, "rows": 3, "length": 3, "heads": 8, "linears": {}, "norms": []}
    for kind, config, host, told in (
        ("lion", {}, t5, "its host has the stacks language, and t5 has encoder and decoder"),
        (
            "lion",
            {},
            cohere,
            "cohere has no table of slots, so no graft attaches to it: its attention and its MLP read one norm",
        ),
        ("llama_adapter", adapter, llama, "it has gates for 8 heads, and llama has 4"),
    ):
        with pytest.raises(ValueError) as error:
            bridge_config(kind, config, "procrustes", llama, host)
        assert str(error.value) == told


def test_names_and_shapes_of_a_bridge(tmp_path: Path) -> None:
    llama, gpt2 = member(tmp_path / "llama"), member(tmp_path / "gpt2", "gpt2", n_embd=48)
    made = bridge_config("mks2", MKS2, "procrustes", llama, gpt2)
    assert made == {
        "method": "procrustes", "width": 32, "host_width": 48, "norm": "rms", "norm_eps": 1e-6, "host_norm": "layer",
        "stacks": {"language": {"layers": 2, "onto": [0, 1]}}, "maps": ["language.1.ffn"], "normed": True,
    }  # fmt: skip
    assert shapes(made) == {
        "bridge.language.1.ffn.down": (32, 48), "bridge.language.1.ffn.offset": (32,), "bridge.language.1.ffn.size": (1,),
        "bridge.language.1.ffn.gain": (32,), "bridge.language.1.ffn.host_gain": (48,),
        "bridge.language.1.ffn.host_bias": (48,),
    }  # fmt: skip
    lion = bridge_config("lion", {"hint": True}, "ridge", gpt2, llama)
    assert lion["maps"] == ["language.0.ffn", "language.1.ffn", "embedding"]
    assert [key for key in shapes(lion) if "embedding" in key] == [
        "bridge.embedding.down", "bridge.embedding.offset", "bridge.embedding.up", "bridge.embedding.up_offset",
    ]  # fmt: skip
    assert not [key for key in shapes(lion) if "gain" in key]
    rows = bridge_config("mks2", MKS2, "embedding", llama, gpt2)
    assert sorted(shapes(rows)) == [
        "bridge.embedding.down", "bridge.embedding.offset", "bridge.embedding.size", "bridge.language.1.ffn.gain",
        "bridge.language.1.ffn.host_bias", "bridge.language.1.ffn.host_gain",
    ]  # fmt: skip
    adapter = {"depth": 2, "rows": 3, "length": 3, "heads": 4, "linears": {}, "norms": []}
    assert bridge_config("llama_adapter", adapter, "ridge", llama, llama)["maps"] == ["language.1.attention"]
    t5 = member(tmp_path / "t5", "t5")
    two = bridge_config("lion", {}, "ridge", t5, t5)
    assert two["stacks"]["decoder"] == {"layers": 3, "onto": [0, 1, 2]}
    assert two["maps"][-1] == "decoder.2.ffn"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "gemma"])
def test_a_member_is_loaded_and_bridged_to_itself(tmp_path: Path, kind: str) -> None:
    own = member(tmp_path / "own", kind)
    model, tokenizer = load(own)
    ids = torch.arange(3, 9)[None]
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if kind == "t5" else {})}
    with torch.no_grad():
        assert torch.equal(model(**given).logits, tiny_text.build(kind)(**given).logits)
    config = bridge_config(
        "lavin" if kind != "t5" else "lion", {"adapter_type": "block", "hint": True}, "procrustes", own, own
    )
    texts = [" ".join(f"w{i * n % 57 + 3}" for n in range(1, 17)) for i in range(1, 25)]
    tensors, found = make_bridge(config, (model, tokenizer), (model, tokenizer), texts)
    assert min(fit.r2 for fit in found) > 0.9999
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == shapes(config)
    if kind == "gemma":
        weight = model.model.layers[0].input_layernorm.weight.double()
        assert torch.allclose(tensors["bridge.language.0.attention.gain"], 1 + weight)


def test_texts_that_pair_nothing(tmp_path: Path) -> None:
    own = load(member(tmp_path / "own"))
    config = bridge_config("mks2", MKS2, "ridge", member(tmp_path / "a"), member(tmp_path / "b"))
    with pytest.raises(CheckpointError) as error:
        make_bridge(config, own, own, ["w3 w4", "w5"])
    assert str(error.value) == (
        "there is nothing to fit a bridge to: 1 tokens end at the same character in both tokenizers, in 2 texts "
        "(give five texts or more)"
    )

    class Silent:
        def __call__(self, text: str, **how: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(CheckpointError) as error:
        pair(Silent(), own[1], ["w3 w4"])
    assert str(error.value) == (
        "its tokenizer does not tell where tokens end (texts can only be paired by tokenizers with tokenizer.json)"
    )


def test_vocabularies_that_share_nothing(tmp_path: Path) -> None:
    one = load(member(tmp_path / "one"))
    folder = tmp_path / "two"
    names = ["<unk>", "<s>", "</s>", *(f"x{i}" for i in range(3, 64))]
    save_member(tiny_text.build("llama"), folder, tokens=names)
    other = load(open_member("two", str(folder), revision=None, relative_to=Path()))
    config = bridge_config("lmeye", {}, "procrustes", member(tmp_path / "a"), member(tmp_path / "b"))
    with pytest.raises(CheckpointError) as error:
        make_bridge(config, one, other, ["w3 w4"] * 5)
    assert str(error.value) == "the two vocabularies share 3 tokens, which fit no bridge"
