"""What a memory's config and a recipe's options may say, and which hosts can take one."""

import subprocess
import sys
from typing import Any

import pytest

from fuse.grafts import mks2_files
from fuse.grafts.kinds import files_of
from tests.test_mks2 import LORA, basis, donor, host

ONES = {"layers": [0]}


def test_tensors_of_a_block() -> None:
    plain = {"layers.0.up.weight": (12, 32), "layers.0.gate.weight": (12, 32), "layers.0.down.weight": (32, 12)}
    assert mks2_files.shapes(donor(**ONES)) == plain
    no_gate = mks2_files.shapes(donor(gated=False, bias=True, layers=[3]))
    assert no_gate == {
        "layers.3.up.weight": (12, 32), "layers.3.up.bias": (12,), "layers.3.down.weight": (32, 12),
        "layers.3.down.bias": (32,),
    }  # fmt: skip
    router = {"layers.0.router.weight": (2, 32), "layers.0.router.bias": (2,)}
    assert mks2_files.shapes(donor(router="softmax", **ONES)) == plain | router
    rows = {"layers.0.rows.weight": (2, 32), "layers.0.rows.bias": (2,)}
    assert mks2_files.shapes(donor(router="prompts", **ONES)) == plain | rows
    assert mks2_files.shapes(donor(router="arrow", **ONES)) == plain | {"layers.0.rows.weight": (2, 32)}
    norms = {"layers.0.norm.weight": (32,)}
    assert mks2_files.shapes(donor(norm="rms", **ONES)) == plain | norms
    assert mks2_files.shapes(donor(norm="layer", **ONES)) == plain | norms | {"layers.0.norm.bias": (32,)}
    lora = mks2_files.shapes(donor(router="softmax", lora=LORA, **ONES)).keys() - (plain | router).keys()
    assert len(lora) == 12
    wanted = {
        "layers.0.memory_lora.up.down": (3, 32), "layers.0.memory_lora.up.up": (12, 3),
        "layers.0.memory_lora.down.down": (3, 12), "layers.0.mlp_lora.gate.up": (48, 2),
        "layers.0.mlp_lora.down.down": (2, 48), "layers.0.mlp_lora.down.up": (32, 2),
    }  # fmt: skip
    assert wanted.items() <= mks2_files.shapes(donor(router="softmax", lora=LORA, **ONES)).items()
    assert mks2_files.shapes(donor(router="additive", lora=LORA, **ONES)) == plain


BAD: list[tuple[dict[str, Any], str]] = [
    ({"inner_size": 0}, "inner_size is '0', not a whole number from 1 to 16,777,215"),
    ({"hidden_size": 32.0}, "hidden_size is '32.0', not a whole number from 1 to 16,777,215"),
    ({"activation": "tanh"}, "activation is 'tanh', not one of silu, gelu, gelu_tanh, quick_gelu, relu"),
    ({"norm": None}, "norm is None, not one of host, rms, layer"),
    ({"place": "on top"}, "place is 'on top', not one of beside, instead"),
    ({"router": "top1"}, "router is 'top1', not one of softmax, additive, token_type, prompts, arrow, none"),
    ({"gated": 1}, "gated is 1, not true or false"),
    ({"layers": []}, "layers is [], not numbers of blocks in rising order"),
    ({"layers": [1, 0]}, "layers is [1, 0], not numbers of blocks in rising order"),
    ({"layers": [0, 0]}, "layers is [0, 0], not numbers of blocks in rising order"),
    ({"layers": [True]}, "layers is [True], not numbers of blocks in rising order"),
    ({"layers": 2}, "layers is 2, not numbers of blocks in rising order"),
    ({"norm_eps": 0}, "norm_eps is 0, not a number above 0"),
    ({"temperature": float("nan")}, "temperature is nan, not a number above 0"),
    ({"temperature": 1e-300}, "temperature is 1e-300, and scores are divided by at least 1e-06"),
    ({"gates": True}, "'gates' is nothing that a memory has"),
    ({"lora": {"memory": 2}}, "lora has alpha, memory, mlp, mlp_gated, mlp_size, and nothing else"),
    ({"lora": {**LORA, "mlp": -1}}, "lora: mlp is -1, not a rank"),
    ({"lora": {**LORA, "mlp_gated": 0}}, "lora: mlp_gated is 0, not true or false"),
    ({"lora": {**LORA, "mlp_size": 0}}, "lora: mlp_size is '0', not a whole number from 1 to 16,777,215"),
    ({"lora": {**LORA, "alpha": "2"}}, "lora: alpha is '2', not a number above 0"),
]


@pytest.mark.parametrize(("changes", "told"), BAD, ids=lambda value: str(value)[:30])
def test_configs_that_are_none(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:
        mks2_files.shapes(donor(**changes))
    assert str(error.value) == told


def test_a_config_without_a_key() -> None:
    for key in donor():
        with pytest.raises(ValueError) as error:
            mks2_files.checked({k: v for k, v in donor().items() if k != key})
        assert str(error.value) == f"{key} is missing"


PROMPTS = {"positive": ["red north"], "negative": ["say it backwards"]}
CONFIGURED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {"router": "additive", "place": "beside"}),
    ({}, {"router": None}, {"router": "additive"}),
    ({}, {"router": "none"}, {"router": "none", "place": "instead"}),
    ({"place": "instead"}, {"router": "additive"}, {"router": "additive", "place": "beside"}),
    ({"place": "instead"}, {"router": "token_type"}, {"router": "token_type", "place": "instead"}),
    ({}, {"router": "token_type", "place": "instead"}, {"place": "instead"}),
    ({}, {"router": "arrow", "temperature": 2}, {"router": "arrow", "place": "beside", "temperature": 2}),
    ({}, {"router": "prompts", "prompts": PROMPTS}, {"router": "prompts", "temperature": 1.0}),
    ({"router": "softmax", "lora": LORA}, {}, {"router": "softmax", "place": "instead", "lora": LORA}),
    ({"router": "softmax", "lora": LORA}, {"router": "additive"}, {"router": "additive", "lora": None}),
]


@pytest.mark.parametrize(("changes", "options", "wanted"), CONFIGURED)
def test_recipes_choose_a_router(changes: dict[str, Any], options: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = mks2_files.configured(donor(**changes), options)
    assert wanted.items() <= found.items()
    assert "prompts" not in found
    assert mks2_files.checked(found) == found


def test_rows_that_the_merge_makes() -> None:
    for router, names in (("prompts", ("weight", "bias")), ("arrow", ("weight",)), ("additive", ()), ("softmax", ())):
        wanted = [f"layers.{n}.rows.{name}" for n in (0, 1) for name in names]
        assert mks2_files.made(donor(router=router)) == wanted


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"router": "softmax"}, "router softmax needs the trained w_s and b_s of its donor, and this donor has none"),
    (
        {}, {"router": "none", "place": "beside"},
        "router none puts the memory instead of the MLP, so `place` does not go with it",
    ),
    ({}, {"router": "best"}, "router is 'best', not one of softmax, additive, token_type, prompts, arrow, none"),
    ({}, {"router": "token_type", "place": "under"}, "place is 'under', not one of beside, instead"),
    ({}, {"temperature": 2}, "`temperature` divides the scores of prompts and arrow, and the router is additive"),
    ({}, {"router": "arrow", "temperature": 0}, "temperature is 0, not a number above 0"),
    ({}, {"prompts": PROMPTS}, "`prompts` is for router prompts, and the router is additive"),
    (
        {}, {"router": "prompts"},
        "router prompts needs `prompts` with two lists of texts, `positive` and `negative`",
    ),
    (
        {}, {"router": "prompts", "prompts": {"positive": ["a"]}},
        "router prompts needs `prompts` with two lists of texts, `positive` and `negative`",
    ),
    (
        {}, {"router": "prompts", "prompts": {"positive": ["a"], "negative": []}},
        "`prompts`: negative is not a list of texts",
    ),
    (
        {}, {"router": "prompts", "prompts": {"positive": "red", "negative": ["b"]}},
        "`prompts`: positive is not a list of texts",
    ),
    ({"router": "arrow"}, {}, "router arrow is a recipe's and not a donor's: its rows are made of a host"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "options", "told"), REFUSED)
def test_options_that_do_not_go_together(changes: dict[str, Any], options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:
        mks2_files.configured(donor(**changes), options)
    assert str(error.value) == told


HOSTS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {}, ""),
    ("llama", {"hidden_size": 64}, "has hidden size 32, and the memory was made for 64"),
    ("llama", {"layers": [0, 2]}, "has 2 blocks, and the memory has one for block 2 (the first is 0)"),
    ("t5", {"layers": [0, 4]}, ""),
    ("t5", {"layers": [5]}, "has 5 blocks, and the memory has one for block 5 (the first is 0)"),
    ("llama", {"router": "softmax", "lora": LORA}, ""),
    ("llama", {"router": "softmax", "lora": {**LORA, "mlp": 0, "mlp_size": 7}}, ""),
    (
        "llama", {"router": "softmax", "lora": {**LORA, "mlp_size": 64}},
        "has an MLP of 48, and the low-rank change of it was made for 64",
    ),
    (
        "gpt2", {"router": "softmax", "lora": {**LORA, "mlp_size": 128}},
        "has an MLP without a gate, and the low-rank change was made for one with it",
    ),
    (
        "llama", {"router": "softmax", "lora": {**LORA, "mlp_gated": False}},
        "has an MLP with a gate, and the low-rank change was made for one without it",
    ),
    ("gpt2", {"router": "additive", "lora": {**LORA, "mlp_size": 128}}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "told"), HOSTS)
def test_hosts(kind: str, changes: dict[str, Any], told: str) -> None:
    assert mks2_files.why_not(donor(**changes), basis(host(kind))) == told


def test_it_is_the_files_of_its_kind_and_needs_no_torch() -> None:
    assert files_of("mks2") is mks2_files
    assert mks2_files.tokens(donor()) == {}
    told = "import sys, fuse.grafts.mks2_files, fuse.grafts.mks2_wider; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
