"""One model in every layout that is published: the same canonical names with the same values."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fuse import families
from tests import layouts, tiny_vlm

WHERE = "tiny"
Tensors = dict[tuple[str, str], torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folders: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("saved")
            tiny_vlm.build(kind).save_pretrained(folders[kind])
        return folders[kind]

    return get


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def placed(folder: Path) -> Tensors:
    config, tensors = read(folder)
    found = families.places(config, list(tensors), WHERE)
    result = {(place.part, place.canonical): tensors[key] for key, place in found.items() if place is not None}
    families.check_language(config, {n: tuple(t.shape) for (p, n), t in result.items() if p == "language"}, WHERE)
    return result


def same(a: Tensors, b: Tensors) -> None:
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def basis(folder: Path) -> families.Basis:
    config, _ = read(folder)
    return families.basis_of(config, families.family_of(config, WHERE), WHERE)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *((kind, layout) for kind in ("llava", "llava_next") for layout in "ABCD"),
        *((kind, layout) for kind in ("llava_onevision", "llava_next with Mistral") for layout in "BCD"),
    ],
)
def test_llava_layouts_agree(kind: str, layout: str, saved: Any, tmp_path: Path) -> None:
    out = layouts.to_layout(saved(kind), tmp_path / layout, layout)
    same(placed(out), placed(saved(kind)))
    assert basis(out) == basis(saved(kind))
    config, _ = read(out)
    assert families.family_of(config, WHERE).native == (layout != "A")


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("kind", ["vipllava", "paligemma", "gemma3", "aya_vision", "mistral3", "internvl"])
def test_families_on_llavas_table_agree(kind: str, layout: str, saved: Any, tmp_path: Path) -> None:
    same(placed(layouts.to_layout(saved(kind), tmp_path / layout, layout)), placed(saved(kind)))


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen2_vl, tied"])
def test_qwen_layouts_agree(kind: str, layout: str, saved: Any, tmp_path: Path) -> None:
    out = layouts.to_layout(saved(kind), tmp_path / layout, layout)
    same(placed(out), placed(saved(kind)))
    assert basis(out) == basis(saved(kind))
    assert ("text_config" in read(out)[0]) == (layout == "new")


def test_a_tower_inside_a_c_layout_may_have_its_inner_name(saved: Any) -> None:
    config, _ = read(saved("llava"))
    key = "model.vision_tower.vision_model.post_layernorm.bias"
    assert families.places(config, [key], WHERE)[key] == families.Place("encoder", "vision_tower.post_layernorm.bias")


def original(kind: str, folder: Path) -> set[tuple[str, str]]:
    """The canonical modules, two names deep, of the parts outside the language model."""
    found = placed(layouts.build_original(kind, folder))
    return {(part, ".".join(name.split(".")[:2])) for part, name in found if part != "language"}


SHARED = {
    ("encoder", "vision_tower.embeddings"),
    ("encoder", "vision_tower.encoder"),
    ("encoder", "vision_tower.pre_layrnorm"),
    ("encoder", "vision_tower.post_layernorm"),
    ("projector", "multi_modal_projector.linear_1"),
    ("projector", "multi_modal_projector.linear_2"),
}


def test_original_llava(saved: Any, tmp_path: Path) -> None:
    assert original("llava", tmp_path / "a") == SHARED | {("extra", "image_newline")}
    theirs = {(part, ".".join(name.split(".")[:2])) for part, name in placed(saved("llava")) if part != "language"}
    assert theirs == SHARED
    linear = original("llava, linear", tmp_path / "b")
    assert linear == {("projector", "multi_modal_projector.weight"), ("projector", "multi_modal_projector.bias")}


def test_mgm_is_llava_and_its_second_tower(tmp_path: Path) -> None:
    assert original("mgm", tmp_path / "mgm") - SHARED == {
        ("encoder", "vision_tower_aux.vision_stem"),
        ("encoder", "vision_tower_aux.vision_stages"),
        *(("projector", f"vlm_uni_{name}_projector.{n}") for name in ("query", "aux", "val") for n in (0, 1)),
    }


def test_slime_is_llava_and_its_sampler(tmp_path: Path) -> None:
    found = original("slime", tmp_path / "slime")
    assert found > SHARED
    assert {name.split(".")[0] for part, name in found - SHARED} == {"sampler", "multi_modal_projector"}
    assert {part for part, _ in found - SHARED} == {"projector"}
    config, tensors = read(tmp_path / "slime")
    buffers = {key for key, place in families.places(config, list(tensors), WHERE).items() if place is None}
    assert buffers == {"model.mm_projector.mean", "model.mm_projector.std"}


def test_original_internvl_shares_language_and_projector(saved: Any, tmp_path: Path) -> None:
    found, theirs = placed(layouts.build_original("internvl", tmp_path / "original")), placed(saved("internvl"))
    for part in ("language", "projector"):
        assert {name for p, name in found if p == part} == {name for p, name in theirs if p == part}
    assert all(name.startswith("vision_tower.original.") for part, name in found if part == "encoder")


@pytest.mark.parametrize(
    ("model_type", "architecture", "text"),
    [
        ("llava", "LlavaLlamaForCausalLM", "llama"),
        ("llava_llama", "LlavaLlamaForCausalLM", "llama"),
        ("llava_mistral", "LlavaMistralForCausalLM", "mistral"),
        ("llava_qwen", "LlavaQwenForCausalLM", "qwen2"),
        ("llava", "LlavaQwenForCausalLM", "qwen2"),
        ("mgm", "MGMLlamaForCausalLM", "llama"),
        ("mgm_gemma", "MGMGemmaForCausalLM", "gemma"),
        ("mgm_mistral", "MGMMistralForCausalLM", "mistral"),
    ],
)
def test_the_language_model_of_an_original(model_type: str, architecture: str, text: str) -> None:
    config = {"model_type": model_type, "architectures": [architecture], "mm_vision_tower": "clip"}
    family = families.family_of(config, WHERE)
    assert families.text_family_of(config, family, WHERE).name == text
    assert (family.model_type, family.native) == (model_type, False)


@pytest.mark.parametrize(
    ("keys", "sampled"),
    [
        ({}, False),
        ({"mm_resampler_type": None, "mm_spatial_pool_mode": "bilinear"}, False),  # LLaVA-NeXT and OneVision
        ({"mm_resampler_type": "spatial_pool"}, False),
        ({"mm_resampler_type": "qformer"}, True),
        ({"mm_resampler_dim": 144}, True),
        ({"seperator": 1919}, True),
    ],
)
def test_slime_is_told_from_llava_by_its_keys(keys: dict[str, Any], sampled: bool) -> None:
    config = {"model_type": "llava_llama", "mm_vision_tower": "clip", **keys}
    assert ("model.sampler." in families.family_of(config, WHERE).prefixes) == sampled


def test_a_linear_projector_of_an_original() -> None:
    config = {"model_type": "llava", "mm_vision_tower": "clip", "mm_projector_type": "linear"}
    found = families.places(config, ["model.mm_projector.weight"], WHERE)
    assert found["model.mm_projector.weight"] == families.Place("projector", "multi_modal_projector.weight")


def test_buffers_of_old_files_are_nobodys(saved: Any) -> None:
    config, _ = read(saved("llava"))
    keys = [
        "vision_tower.vision_model.embeddings.position_ids",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    ]
    assert families.places(config, keys, WHERE) == dict.fromkeys(keys)
