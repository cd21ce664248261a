"""Every multimodal class of transformers: what it saves and what it holds in memory is placed whole."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from safetensors import safe_open
from transformers import CONFIG_MAPPING

from fuse import families
from fuse.families.registry import FAMILIES
from tests import tiny_vlm

WHERE = "tiny"
KINDS = [*tiny_vlm.VLM_TYPES, *tiny_vlm.VARIANTS]
NOT_NATIVE = {"internvl_chat"}

# The canonical modules of the parts outside the language model, by class.
TOWER, PROJECTOR = "vision_tower", "multi_modal_projector"
LLAVA = {"encoder": {TOWER}, "projector": {PROJECTOR}}
LLAVA_NEXT = {**LLAVA, "extra": {"image_newline"}}
IDEFICS = {"encoder": {"vision_model"}, "projector": {"connector"}}
QWEN = {"encoder": {"visual"}, "projector": {"visual"}}
BLIP = {"encoder": {"vision_model"}, "projector": {"qformer", "query_tokens", "language_projection"}}
MODULES: dict[str, dict[str, set[str]]] = {
    "llava": LLAVA, "vipllava": LLAVA, "internvl": LLAVA, "paligemma": LLAVA, "mistral3": LLAVA, "gemma3": LLAVA,
    "aya_vision": LLAVA, "llava_next": LLAVA_NEXT, "llava_onevision": LLAVA_NEXT, "idefics2": IDEFICS,
    "idefics3": IDEFICS, "smolvlm": IDEFICS, "qwen2_vl": QWEN, "qwen2_5_vl": QWEN, "qwen3_vl": QWEN, "blip-2": BLIP,
    "instructblip": BLIP, "mllama": {"encoder": {"vision_model"}, "projector": {PROJECTOR}},
}  # fmt: skip


@cache
def saved(kind: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], set[str]]:
    """config.json, shapes on disk, shapes in memory, and the names in memory that are tied to another."""
    model = tiny_vlm.build(kind)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            disk = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    state = model.state_dict()
    owners = Counter(tensor.data_ptr() for tensor in state.values())
    tied = {key for key, tensor in state.items() if owners[tensor.data_ptr()] > 1}
    return config, disk, {key: tuple(tensor.shape) for key, tensor in state.items()}, tied


def placed(config: dict[str, Any], keys: dict[str, tuple[int, ...]]) -> dict[tuple[str, str], tuple[int, ...]]:
    found = families.places(config, list(keys), WHERE)
    assert set(found) == set(keys)
    return {(place.part, place.canonical): keys[key] for key, place in found.items() if place is not None}


def test_every_family_has_a_tiny_model() -> None:
    assert set(FAMILIES) == set(tiny_vlm.VLM_TYPES) | NOT_NATIVE


@pytest.mark.parametrize("kind", KINDS)
def test_disk_and_memory_have_the_same_canonical_names(kind: str) -> None:
    config, disk, memory, tied = saved(kind)
    on_disk, in_memory = placed(config, disk), placed(config, memory)
    assert len(on_disk) == len(disk)  # nothing that is saved today counts as a buffer
    head = ("language", families.text_family_of(config, families.family_of(config, WHERE), WHERE).head)
    if tied:
        in_memory.pop(head)
    assert on_disk == in_memory


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_is_whole(kind: str) -> None:
    config, disk, _, tied = saved(kind)
    language = {name: shape for (part, name), shape in placed(config, disk).items() if part == "language"}
    families.check_language(config, language, WHERE)
    basis = families.basis_of(config, families.family_of(config, WHERE), WHERE)
    assert basis.tied == bool(tied)


@pytest.mark.parametrize("kind", tiny_vlm.VLM_TYPES)
def test_parts_are_the_modules_they_should_be(kind: str) -> None:
    config, disk, _, _ = saved(kind)
    modules: dict[str, set[str]] = {}
    for part, name in placed(config, disk):
        if part != "language":
            modules.setdefault(part, set()).add(name.split(".")[0])
    assert modules == MODULES[kind]


def test_qwen_mergers_are_the_projector() -> None:
    config, disk, _, _ = saved("qwen3_vl")
    projector = {name.split(".")[1] for part, name in placed(config, disk) if part == "projector"}
    encoder = {name.split(".")[1] for part, name in placed(config, disk) if part == "encoder"}
    assert projector == {"merger", "deepstack_merger_list"}
    assert encoder == {"patch_embed", "pos_embed", "blocks"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_basis_is_that_of_the_loaded_config(kind: str) -> None:
    config, _, _, _ = saved(kind)
    family = families.family_of(config, WHERE)
    basis = families.basis_of(config, family, WHERE)
    loaded = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    text = loaded.get_text_config()
    text = loaded.text_config if text is loaded else text
    assert (basis.hidden_size, basis.layers, basis.heads, basis.vocab_size) == (
        text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.vocab_size,
    )  # fmt: skip
    again = json.loads(loaded.to_json_string(use_diff=False))
    assert families.basis_of({**again, "model_type": config["model_type"]}, family, WHERE) == basis


# What the classes do, seen by building them: (changes to the config, is the head the embedding).
TIES = [
    ("llava", {"tie_word_embeddings": True}, True),
    ("llava", {"text_config": {"tie_word_embeddings": True}}, True),
    ("vipllava", {"text_config": {"tie_word_embeddings": True}}, False),
    ("qwen2_vl", {"text_config": {"tie_word_embeddings": True}}, True),
    ("qwen3_vl", {"text_config": {"tie_word_embeddings": True}}, False),
    ("idefics3", {"text_config": {"tie_word_embeddings": True}}, False),
    ("mistral3", {"tie_word_embeddings": True}, True),
    ("gemma3", {"tie_word_embeddings": False}, False),
    ("aya_vision", {"tie_word_embeddings": False}, False),
    ("blip-2", {"text_config": {"tie_word_embeddings": False}}, False),
    ("instructblip", {"tie_word_embeddings": True}, False),
    ("instructblip", {"text_config": {"tie_word_embeddings": True}}, True),
    ("mllama", {"tie_word_embeddings": True}, False),
]


@pytest.mark.parametrize(("kind", "changes", "tied"), TIES)
def test_tied_is_what_the_class_does(
    kind: str, changes: dict[str, Any], tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tiny_vlm.CONFIGS[kind]
    if "text_config" in changes:
        changes = {"text_config": {**given["text_config"], **changes["text_config"]}}
    monkeypatch.setitem(tiny_vlm.VARIANTS, "changed", (kind, changes))
    model = tiny_vlm.build("changed")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied
    config = {"model_type": kind, **given, **changes}
    assert families.basis_of(config, families.family_of(config, WHERE), WHERE).tied == tied


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - NOT_NATIVE))
def test_defaults_of_a_family_are_those_of_its_config_class(kind: str) -> None:
    family, default = families.family_of({"model_type": kind}, WHERE), CONFIG_MAPPING[kind]()
    text = default.get_text_config()
    assert family.text_type == (default.text_config if text is default else text).model_type
    if family.ties in {"outer", "either"}:
        assert family.tied == default.tie_word_embeddings
