"""Original-LLaVA branches against the official code's numbers and the towers of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from fuse.branches.llava_original import LlavaBranch, LlavaEyes
from fuse.branches.original_tokens import original_tokens
from fuse.errors import CheckpointError
from tests.original_branches import (
    SIGLIP,
    TOWER,
    anyres,
    built,
    canonical,
    config,
    difference,
    golden,
    nearly_the_same,
    picture,
    round_trip,
    see,
    seeded,
)


@pytest.mark.parametrize("name", ["llava_flat", "llava_spatial", "llava_spatial_unpad", "llava_spatial_unpad_leftpad"])
def test_tokens_are_those_of_the_official_code(name: str) -> None:
    tensors, facts = golden(name)
    settings = anyres(
        facts["constructor"]["mm_patch_merge_type"], image_grid_pinpoints=facts["constructor"]["image_grid_pinpoints"]
    )
    parameters = canonical(tensors, settings)
    newline = parameters["image_newline"] if "unpad" in name else parameters.pop("image_newline")
    branch = built(LlavaBranch(settings), parameters)
    sizes = [tuple(size) for size in facts["image_sizes_wh"]]
    features = tensors["input.tower_features"].split(facts["crops_per_image"])
    with torch.no_grad():
        packed = branch.tokens(features, sizes)
    assert newline.shape == (16,)
    assert max(difference(t, tensors[f"output.packed_{i}"]) for i, t in enumerate(packed)) <= float(facts["tolerance"])
    spliced, mask = splice(tensors, packed, facts["constructor"]["padding_side"])
    assert torch.equal(mask, tensors["output.attention_mask"])
    assert difference(spliced, tensors["output.inputs_embeds"]) <= float(facts["tolerance"])


def splice(
    tensors: dict[str, torch.Tensor], packed: list[torch.Tensor], side: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The golden's prompts with each -200 replaced by the next image's tokens, padded with zeros."""
    images, rows = iter(packed), []
    for ids, mask in zip(tensors["input.input_ids"], tensors["input.attention_mask"], strict=True):
        parts = [
            next(images) if i == -200 else tensors["param.embed_tokens.weight"][i][None]
            for i in ids[mask.bool()].tolist()
        ]
        rows.append(torch.cat(parts))
    together = torch.nn.utils.rnn.pad_sequence
    return together(rows, True, padding_side=side), together(
        [torch.ones(len(r), dtype=torch.long) for r in rows], True, padding_side=side
    )


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
@pytest.mark.parametrize("size", [(200, 90), (100, 100), (60, 190), (37, 91), (1, 1), (1, 300), (300, 1), (57, 1000)])
def test_the_layout_counts_what_the_module_gives(merge: str, size: tuple[int, int], tmp_path: Path) -> None:
    settings = anyres(merge)
    prepared = LlavaEyes(settings, tmp_path).prepare(picture(*size))
    (seen,) = see(seeded(LlavaBranch(settings)), prepared)
    assert prepared.layout == (len(seen.tokens),)
    assert original_tokens("llava_original", settings, size) == len(seen.tokens)
    assert prepared.grid is None and not prepared.variable


@pytest.mark.parametrize("aspect", ["pad", "square", None])
def test_one_view_is_the_tower_of_transformers_and_the_projector(aspect: str | None, tmp_path: Path) -> None:
    settings = config(image_aspect_ratio=aspect)
    branch = seeded(LlavaBranch(settings))
    eyes = LlavaEyes(settings, tmp_path)
    prepared = [eyes.prepare(picture(80, 60, seed)) for seed in (1, 2)]
    assert [p.layout for p in prepared] == [(16,), (16,)]
    assert prepared[0].grid == (1, 4, 4)
    seen = see(branch, *prepared)
    tower = CLIPVisionModel(CLIPVisionConfig(**{k: v for k, v in TOWER.items() if k != "model_type"})).eval()
    tower.load_state_dict(branch.vision_tower.state_dict())
    for p, s in zip(prepared, seen, strict=True):
        with torch.no_grad():
            hidden = tower(p.inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:].double()
        first, second = (getattr(branch.multi_modal_projector, f"linear_{n}").double() for n in (1, 2))
        with torch.no_grad():
            wanted = second(torch.nn.functional.gelu(first(hidden)))
        branch.float()
        assert difference(s.tokens.double(), wanted) < 1e-5


def test_select_layer_and_feature(tmp_path: Path) -> None:
    prepared = LlavaEyes(config(), tmp_path).prepare(picture(56, 56))
    hidden = None
    for layer in (-1, -2, -3, -4, 0, 3):
        settings = config(
            mm_vision_select_layer=layer, mm_vision_select_feature="cls_patch", mm_projector_type="linear"
        )
        branch = seeded(LlavaBranch(settings))
        if hidden is None:
            with torch.no_grad():
                hidden = branch.vision_tower(prepared.inputs["pixel_values"], output_hidden_states=True).hidden_states
        (seen,) = see(branch, prepared)
        with torch.no_grad():
            assert difference(seen.tokens, branch.multi_modal_projector(hidden[layer][0])) < 1e-6
        assert LlavaEyes(settings, tmp_path).prepare(picture(9, 9)).layout == (17,)


def test_a_siglip_tower_loses_its_last_layer_and_its_head(tmp_path: Path) -> None:
    settings = config(towers={"vision_tower": SIGLIP})
    branch = seeded(LlavaBranch(settings))
    names = [name for name in branch.state_dict() if "layers.2." in name or ".head." in name]
    assert names == []
    eyes = LlavaEyes(settings, tmp_path)
    prepared = eyes.prepare(picture(30, 20))
    (seen,) = see(branch, prepared)
    assert seen.tokens.shape == (16, 16)
    white = LlavaEyes(config(towers={"vision_tower": SIGLIP}, image_aspect_ratio="square"), tmp_path)
    assert white.prepare(Image.new("RGB", (10, 30), "white")).inputs["pixel_values"].unique().tolist() == [1.0]
    with pytest.raises(CheckpointError) as caught:
        see(branch, prepared, attention=True)
    assert str(caught.value) == (
        "this branch has no class token whose attention says which visual tokens matter (prune: norm works)"
    )


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_class_attention_is_that_of_the_layer_that_is_read(merge: str, tmp_path: Path) -> None:
    settings = anyres(merge)
    branch = seeded(LlavaBranch(settings))
    prepared = LlavaEyes(settings, tmp_path).prepare(picture(110, 50))
    (seen,) = see(branch, prepared, attention=True)
    tower = CLIPVisionModel(
        CLIPVisionConfig(**{k: v for k, v in TOWER.items() if k != "model_type"}, attn_implementation="eager")
    )
    tower.load_state_dict(branch.vision_tower.state_dict())
    with torch.no_grad():
        weights = tower.eval()(prepared.inputs["pixel_values"], output_attentions=True).attentions[1]
    wanted = weights.mean(1)[:, 0, 1:]
    if merge == "spatial":  # one row of two cuts: their patch rows lie side by side
        cuts = wanted[1:].reshape(2, 4, 4).transpose(0, 1).reshape(-1)
        wanted = torch.cat([wanted[0], cuts])
    assert seen.attention.shape == (len(seen.tokens),)
    assert difference(seen.attention, wanted.flatten()) < 1e-6


def test_class_attention_is_refused_where_tokens_are_not_patches(tmp_path: Path) -> None:
    settings = anyres("spatial_unpad")
    with pytest.raises(CheckpointError, match=r"no class token .* \(prune: norm works\)$"):
        see(seeded(LlavaBranch(settings)), LlavaEyes(settings, tmp_path).prepare(picture(50, 50)), attention=True)


def test_start_and_end_markers_are_written_around_an_image(tmp_path: Path) -> None:
    prepared = LlavaEyes(config(mm_use_im_start_end=True), tmp_path).prepare(picture(5, 5))
    assert prepared.layout == ("<im_start>", 16, "<im_end>")


def test_built_on_meta_and_loaded_by_transformers_it_gives_the_same_tokens(tmp_path: Path) -> None:
    settings = anyres("spatial_unpad")
    with torch.device("meta"):
        assert all(t.is_meta for t in LlavaBranch(settings).state_dict().values())
    branch = seeded(LlavaBranch(settings))
    prepared = LlavaEyes(settings, tmp_path).prepare(picture(100, 40))
    loaded = round_trip(branch, settings, LlavaBranch, tmp_path / "saved")
    assert torch.equal(see(loaded, prepared)[0].tokens, see(branch, prepared)[0].tokens)


def test_in_bfloat16_it_sees_nearly_the_same(tmp_path: Path) -> None:
    settings = anyres("spatial_unpad")
    nearly_the_same(seeded(LlavaBranch(settings)), LlavaEyes(settings, tmp_path).prepare(picture(100, 40)))


def test_parameter_names_are_the_canonical_ones() -> None:
    names = {n for n in LlavaBranch(anyres("spatial_unpad")).state_dict() if not n.startswith("vision_tower.encoder")}
    assert names == {
        "image_newline", "multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.bias",
        "multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias",
        "vision_tower.embeddings.class_embedding", "vision_tower.embeddings.patch_embedding.weight",
        "vision_tower.embeddings.position_embedding.weight", "vision_tower.pre_layrnorm.weight",
        "vision_tower.pre_layrnorm.bias", "vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias",
    }  # fmt: skip
    linear = LlavaBranch(config(mm_projector_type="linear")).state_dict()
    assert {n for n in linear if "projector" in n} == {"multi_modal_projector.weight", "multi_modal_projector.bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"towers": None}, "config.json: towers.vision_tower is missing"),
        ({"towers": {"vision_tower": {"model_type": "dinov2"}}}, "config.json: towers.vision_tower: model_type 'dinov2' is neither clip_vision_model nor siglip_vision_model"),
        ({"towers": {"vision_tower": {**TOWER, "image_size": 0}}}, "config.json: towers.vision_tower.image_size is 0, not a positive whole number"),
        ({"mm_hidden_size": 13}, "config.json: mm_hidden_size is 13, but the vision tower is 12 wide"),
        ({"mm_vision_select_layer": 4}, "config.json: mm_vision_select_layer is 4, but the vision tower has 3 layers"),
        ({"mm_vision_select_feature": "mean"}, "config.json: mm_vision_select_feature is 'mean'; fuse knows patch, cls_patch"),
        ({"image_aspect_ratio": "anyres_max_9"}, "config.json: image_aspect_ratio is 'anyres_max_9'; fuse knows square, pad, anyres"),
        ({"mm_patch_merge_type": "maxpool2x2"}, "config.json: mm_patch_merge_type is 'maxpool2x2'; fuse knows flat, spatial, spatial_unpad"),
        ({"mm_projector_type": "cabstract"}, "config.json: mm_projector_type is 'cabstract'; fuse knows linear and mlp1x_gelu to mlp3x_gelu"),
        ({"s2": True}, "config.json: s2 asks for a tower at several scales, which fuse does not have"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": "(1x1),...,(6x6)"}, "config.json: image_grid_pinpoints is '(1x1),...,(6x6)', not a list of [width, height] in steps of 56"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[56, 100]]}, "config.json: image_grid_pinpoints is '[[56, 100]]', not a list of [width, height] in steps of 56"),
    ],
)  # fmt: skip
def test_what_it_does_not_know_it_says(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        LlavaBranch(config(**changes))
    assert str(caught.value) == message
