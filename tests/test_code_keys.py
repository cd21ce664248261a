"""Which keys ask for code, what is refused, and what outputs are written without."""

import json
from pathlib import Path
from typing import Any

import pytest

from fuse.checkpoint import check_config
from fuse.code_keys import CODE_KEYS, is_left_out, without_code
from fuse.errors import CheckpointError
from fuse.small_files import copy_small

CODE, FETCH = "asks to run code from the folder; fuse never does", "names code to fetch; fuse never does"
REFUSED: dict[str, tuple[str, Any, str]] = {
    "trust": ("trust_remote_code", True, f"trust_remote_code {CODE}"),
    "trust in words": ("trust_remote_code", "yes", f"trust_remote_code {CODE}"),
    "underscored": ("_attn_implementation", "org/kernel", f"_attn_implementation: 'org/kernel' {FETCH}"),
    "plain": ("attn_implementation", "org/kernel:f", f"attn_implementation: 'org/kernel:f' {FETCH}"),
    "revision": ("attn_implementation", "org/kernel@main", f"attn_implementation: 'org/kernel@main' {FETCH}"),
    "by part": ("attn_implementation", {"text_config": "o/k"}, f"attn_implementation: {{'text_config': 'o/k'}} {FETCH}"),
    "experts": ("experts_implementation", "org/kernel", f"experts_implementation: 'org/kernel' {FETCH}"),
    "internal": ("_attn_implementation_internal", "sdpa", f"_attn_implementation_internal: 'sdpa' {FETCH}"),
    "internal of experts": ("_experts_implementation_internal", "x", f"_experts_implementation_internal: 'x' {FETCH}"),
}  # fmt: skip


@pytest.mark.parametrize("place", ["", "text_config", "layers[1]"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_config_that_asks_for_code_is_refused(case: str, place: str) -> None:
    key, value, told = REFUSED[case]
    inner = {key: value}
    config = {"": inner, "text_config": {"text_config": inner}, "layers[1]": {"layers": [0, inner]}}[place]
    with pytest.raises(CheckpointError) as error:
        check_config(config, "config.json")
    at = {"": "", "text_config": "text_config.", "layers[1]": "layers[1]."}[place]
    assert str(error.value) == f"config.json: {at}{told}"


LEFT_OUT = [*CODE_KEYS, "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
            "experts_implementation", "_attn_implementation_internal"]  # fmt: skip
HARMLESS = {"attn_implementation": "sdpa", "_attn_implementation": "eager", "trust_remote_code": False}


@pytest.mark.parametrize("key", sorted(LEFT_OUT))
def test_keys_that_outputs_are_written_without(tmp_path: Path, key: str) -> None:
    value = {"a": 1, key: "org/x", "inner": [{"b": 2, key: {"A": "x.B"}}]}
    assert is_left_out(key)
    assert without_code(value) == {"a": 1, "inner": [{"b": 2}]}
    for name in (
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        (tmp_path / name).write_text(json.dumps(value))
        copy_small(tmp_path / name, tmp_path / "copy.json")
        assert json.loads((tmp_path / "copy.json").read_text()) == {"a": 1, "inner": [{"b": 2}]}


def test_a_choice_among_the_librarys_kernels_is_fine_and_left_out() -> None:
    check_config(HARMLESS, "config.json")
    assert without_code(HARMLESS) == {}


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "added_tokens.json"])
def test_tokens_are_not_keys(tmp_path: Path, name: str) -> None:
    """A vocabulary may have any word in it."""
    told = json.dumps({"_internal": 0, "auto_map": 1, "trust_remote_code": 2})
    (tmp_path / name).write_text(told)
    copy_small(tmp_path / name, tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_text() == told


@pytest.mark.parametrize("key", ["hidden_size", "implementation", "internal", "attn_internals", "attention_dropout"])
def test_other_keys_stay(key: str) -> None:
    assert without_code({key: 1}) == {key: 1}


def test_transformers_takes_kernels_from_a_config() -> None:
    """Why the key without a line before it counts too: transformers reads it out of config.json."""
    from transformers import LlamaConfig

    assert LlamaConfig.from_dict({"attn_implementation": "org/kernel"})._attn_implementation == "org/kernel"
