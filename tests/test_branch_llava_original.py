"""Original-LLaVA branches against the official code's numbers, and their own preprocessing against a float64 oracle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, PretrainedConfig, PreTrainedModel

from fuse.branches.anyres import best_resolution, fitted, map_tokens, sliced_resolution, unpadded
from fuse.branches.branch import Prepared
from fuse.branches.llava_original import LlavaBranch, LlavaEyes
from fuse.branches.original_tokens import original_tokens
from fuse.errors import CheckpointError
from fuse.families import places

GOLDENS = Path(__file__).parent / "goldens"
TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "hidden_act": "quick_gelu",
}  # fmt: skip
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
LANGUAGE = {
    "model_type": "llava_llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30,
    "intermediate_size": 8,
}  # fmt: skip
POINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def config(**changes: Any) -> dict[str, Any]:
    """The config of a tiny LLaVA; a key given as None is left out."""
    whole = {
        **LANGUAGE, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 12, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat", "image_aspect_ratio": "pad", "towers": {"vision_tower": TOWER}, **changes,
    }  # fmt: skip
    return {k: v for k, v in whole.items() if v is not None}


def anyres(merge: str, **changes: Any) -> dict[str, Any]:
    return config(
        **{"image_aspect_ratio": "anyres", "mm_patch_merge_type": merge, "image_grid_pinpoints": POINTS, **changes}
    )


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return load_file(GOLDENS / f"{name}.safetensors"), json.loads((GOLDENS / f"{name}.json").read_text())


def canonical(
    tensors: dict[str, torch.Tensor], settings: dict[str, Any], outer: str = "model."
) -> dict[str, torch.Tensor]:
    """The parameters of a golden under the names that the family's table gives to their official keys."""
    official = {outer + key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")}
    found = places(settings, list(official), "golden")
    return {place.canonical: official[key] for key, place in found.items() if place and place.part != "language"}


def built(branch: Any, parameters: dict[str, torch.Tensor]) -> Any:
    """The branch with the golden's parameters; only its tower, for which goldens give the features, keeps its own."""
    missing, unexpected = branch.load_state_dict(parameters, strict=False)
    assert not unexpected
    assert not [name for name in missing if not name.startswith("vision_tower")]
    return branch.eval()


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    return (found - wanted).abs().max().item()


def seeded(branch: torch.nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return branch.eval()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def see(branch: Any, *prepared: Prepared, text: list[torch.Tensor] | None = None, attention: bool = False) -> Any:
    inputs = {name: [p.inputs[name] for p in prepared] for name in prepared[0].inputs}
    words = [torch.tensor([3, 5, 8])] * len(prepared) if text is None else text
    with torch.no_grad():
        return branch(inputs, text=words, embed=embedding(), attention=attention)


def embedding() -> torch.nn.Embedding:
    """The host's table."""
    return torch.nn.Embedding.from_pretrained(torch.randn(30, 16, generator=torch.Generator().manual_seed(9)))


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


def test_geometry_is_that_of_the_official_tables() -> None:
    facts = json.loads((GOLDENS / "llava_anyres_tables.json").read_text())
    for row in facts["table"]:
        assert best_resolution(tuple(row["size"]), facts["pinpoints"]) == tuple(row["best"])
        assert [edge // 336 for edge in best_resolution(tuple(row["size"]), facts["pinpoints"])] == row["grid_wh"]
        assert [edge // 24 for edge in best_resolution(tuple(row["size"]), facts["pinpoints_small"])] == row[
            "grid_wh_small"
        ]
    for row in facts["table2"]:
        assert best_resolution(tuple(row["size"]), facts["pinpoints2"]) == tuple(row["best"])
    assert len(facts["unpad_table"]) > 50
    for row in facts["unpad_table"]:
        size, (high, wide) = tuple(row["size"]), row["map_hw"]
        kept = torch.zeros(high, wide)[unpadded(high, wide, size)]
        assert list(kept.shape) == row["out_hw"]
        assert map_tokens(high, wide, size, newline=True) == kept.shape[0] * (kept.shape[1] + 1)


def test_slime_slices_by_area() -> None:
    assert sliced_resolution((600, 620), 336) == (672, 672)
    assert sliced_resolution((640, 300), 336) == (672, 336)
    assert sliced_resolution((100, 100), 336) == (336, 672)
    assert sliced_resolution((5000, 5000), 336) == (672, 1008)
    assert sliced_resolution((4000, 300), 336) == (2352, 336)


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


def test_pixels_against_a_float64_oracle(tmp_path: Path) -> None:
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    image = picture(90, 60, 3)
    squared = Image.new("RGB", (90, 90), tuple(int(c * 255) for c in mean))
    squared.paste(image, (0, 15))
    wanted = (np.asarray(squared.resize((56, 56), Image.Resampling.BICUBIC), dtype=np.float64) / 255 - mean) / std
    found = LlavaEyes(config(), tmp_path).prepare(image).inputs["pixel_values"]
    assert found.dtype == torch.float32
    assert np.abs(found[0].numpy().transpose(1, 2, 0) - wanted).max() < 1e-6
    scaled = np.asarray(image.resize((84, 56), Image.Resampling.BICUBIC), dtype=np.float64)[:, 14:70]
    found = LlavaEyes(config(image_aspect_ratio="square"), tmp_path).prepare(image).inputs["pixel_values"]
    assert np.abs(found[0].numpy().transpose(1, 2, 0) - (scaled / 255 - mean) / std).max() < 1e-6


def test_anyres_views_are_the_whole_and_then_the_cuts_by_rows(tmp_path: Path) -> None:
    image = picture(100, 90, 4)
    assert best_resolution(image.size, [(112, 112)]) == (112, 112) and fitted(image.size, (112, 112)) == (112, 101)
    canvas = Image.new("RGB", (112, 112))
    canvas.paste(image.resize((112, 101)), (0, 5))
    lens = LlavaEyes(anyres("flat"), tmp_path).lens
    views = LlavaEyes(anyres("flat"), tmp_path).prepare(image).inputs["pixel_values"]
    wanted = [image.resize((56, 56)), *(canvas.crop((x, y, x + 56, y + 56)) for y in (0, 56) for x in (0, 56))]
    assert torch.equal(views, torch.stack([lens.view(part) for part in wanted]))


def test_the_towers_own_preprocessing_rules(tmp_path: Path) -> None:
    own = {
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 56, "width": 56},
        "image_mean": [0, 0, 0],
        "image_std": [1, 1, 1],
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    image = picture(128, 128, 5)
    found = LlavaEyes(config(), tmp_path).prepare(image).inputs["pixel_values"][0]
    wanted = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR), dtype=np.float64)[4:60, 4:60] / 255
    assert np.abs(found.numpy().transpose(1, 2, 0) - wanted).max() < 1e-6


@pytest.mark.parametrize("size", [(1, 70000), (70000, 1), (9000, 9)])
@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_very_long_pictures_stay_small_in_memory(size: tuple[int, int], aspect: str, tmp_path: Path) -> None:
    prepared = LlavaEyes(config(image_aspect_ratio=aspect), tmp_path).prepare(Image.new("RGB", size, "red"))
    assert prepared.inputs["pixel_values"].shape == (1, 3, 56, 56)


def test_start_and_end_markers_are_written_around_an_image(tmp_path: Path) -> None:
    prepared = LlavaEyes(config(mm_use_im_start_end=True), tmp_path).prepare(picture(5, 5))
    assert prepared.layout == ("<im_start>", 16, "<im_end>")


class Whole(PreTrainedModel):
    """The least that holds a branch as a fused model does."""

    config_class = PretrainedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.branches = torch.nn.ModuleDict({"m": KINDS[config.kind](config.branch)})
        self.post_init()


KINDS: dict[str, Any] = {}


def round_trip(branch: Any, settings: dict[str, Any], kind: Any, folder: Path) -> Any:
    """The branch saved and loaded as part of a model; asserts that every tensor was found, and only those."""
    KINDS["kind"] = kind
    whole = Whole(PretrainedConfig(kind="kind", branch=settings))
    whole.branches["m"].load_state_dict(branch.state_dict())
    whole.save_pretrained(folder)
    loaded, report = Whole.from_pretrained(folder, config=whole.config, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return loaded.branches["m"].eval()


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


def nearly_the_same(branch: Any, prepared: Prepared) -> None:
    (full,) = see(branch, prepared)
    half = Prepared(
        {k: t.bfloat16() if t.is_floating_point() else t for k, t in prepared.inputs.items()}, prepared.layout
    )
    (found,) = see(branch.bfloat16(), half)
    assert found.tokens.dtype == torch.bfloat16
    assert difference(found.tokens.float(), full.tokens) < 0.05 * full.tokens.abs().max()


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


def test_pinpoints_may_be_text(tmp_path: Path) -> None:
    settings = config(image_aspect_ratio="anyres", image_grid_pinpoints="[(112, 56), (56, 112)]")
    assert LlavaEyes(settings, tmp_path).prepare(picture(100, 50)).layout == (48,)


def test_a_processor_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"crop_size": 224, "size": 224}')
    with pytest.raises(CheckpointError) as caught:
        LlavaEyes(config(), tmp_path)
    assert str(caught.value) == f"{path}: makes views of 224 pixels, but the tower sees 56"
