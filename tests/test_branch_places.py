"""Boxes of visual tokens of encoder branches and original LLaVAs: by hand, and against pictures that show where they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from fuse.branches.branch import Prepared
from fuse.branches.encoder import EncoderEyes
from fuse.branches.encoder_places import centred
from fuse.branches.llava_original import LlavaBranch, LlavaEyes
from fuse.branches.mgm import MgmEyes
from fuse.branches.places import grid_boxes
from fuse.branches.slime import SlimeBranch, SlimeEyes
from tests import test_fused_originals
from tests.cli import fuse_here
from tests.original_branches import anyres, config, picture, see, seeded, slime
from tests.test_branch_mgm import mgm
from tests.tiny_encoders import VIT, VIT_CONFIG, timm_branch

SIZES = [(400, 200), (200, 400), (300, 300), (533, 311)]


def ramp(size: tuple[int, int]) -> Image.Image:
    """A picture whose red says how far to the right a pixel is, and whose green how far down."""
    across, down = (np.arange(n) + 0.5 for n in size)
    x, y = np.meshgrid(across / size[0], down / size[1])
    return Image.fromarray(np.rint(np.stack([x, y, np.full_like(x, 0.5)], 2) * 255).astype(np.uint8))


def where_cells_are(pixels: torch.Tensor, side: int, mean: list[float], std: list[float]) -> np.ndarray:
    """The middle of each of side x side cells of a prepared ramp, [side * side, 2], from its colours."""
    edge = pixels.shape[-1]
    cells = pixels.double().numpy()[:2].reshape(2, side, edge // side, side, edge // side).mean((2, 4))
    colours = cells * np.array(std[:2])[:, None, None] + np.array(mean[:2])[:, None, None]
    return colours.reshape(2, -1).T


def inside(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] > -1e-9).all(1) & (boxes[:, 2:] < 1 + 1e-9).all(1)


def agree(
    prepared: Prepared, views: list[torch.Tensor], boxes: np.ndarray, mean: list[float], std: list[float]
) -> None:
    """The boxes of whole cells lie where the colours say."""
    side = round((len(boxes) / len(views)) ** 0.5)
    shown = np.concatenate([where_cells_are(view, side, mean, std) for view in views])
    whole = inside(boxes)
    assert whole.sum() >= len(boxes) // 4
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(middles[whole], shown[whole], atol=0.02)
    assert prepared.places is not None and len(prepared.places) == prepared.tokens


HALF = [0.5, 0.5, 0.5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_open_clip(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    vision = VIT | {"image_size": 64, "patch_size": 8}
    made = {"size": [64, 64], "mean": HALF, "std": HALF, "interpolation": "bilinear", "resize_mode": mode}
    settings = {"library": "open_clip", "architecture": "x", "tower": {"embed_dim": 16, "vision_cfg": vision}}
    settings |= {"preprocess": made, "projector": [{"in": 32, "out": 4, "bias": False}]}
    prepared = EncoderEyes(settings, tmp_path).prepare(ramp(size))
    boxes = prepared.places
    assert boxes is not None
    agree(prepared, [prepared.inputs["pixel_values"]], boxes, HALF, HALF)
    if size == (400, 200):
        corner = {
            "shortest": (0.25, 0, 0.3125, 0.125),
            "longest": (0, -0.5, 0.125, -0.25),
            "squash": (0, 0, 0.125, 0.125),
        }
        np.testing.assert_allclose(boxes[0], corner[mode])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "percent"), [("center", 0.8), ("squash", 0.8), ("border", 1.0), (None, 1.0)])
def test_timm(tmp_path: Path, size: tuple[int, int], mode: str | None, percent: float) -> None:
    made = {"size": [160, 160], "mean": HALF, "std": HALF, "interpolation": "bilinear", "crop_pct": percent}
    settings = timm_branch("test_vit", 64) | {"preprocess": made | ({"crop_mode": mode} if mode else {})}
    prepared = EncoderEyes(settings, tmp_path).prepare(ramp(size))
    boxes = prepared.places
    assert boxes is not None
    agree(prepared, [prepared.inputs["pixel_values"]], boxes, HALF, HALF)
    if size == (400, 200) and mode in {
        "center",
        "squash",
    }:  # 160 of 200 pixels are kept, of the shorter side or of both
        edge = {"center": (0.3, 0.1), "squash": (0.1, 0.1)}[mode or ""]
        np.testing.assert_allclose(boxes[0, :2], edge)
        np.testing.assert_allclose(boxes[-1, 2:], 1 - np.array(edge))


def test_timms_own_preprocessing(tmp_path: Path) -> None:
    """test_vit: 160 pixels of 168 (crop_pct 0.95)."""
    prepared = EncoderEyes(timm_branch("test_vit", 64), tmp_path).prepare(ramp((300, 300)))
    assert timm.get_pretrained_cfg("test_vit").crop_pct == 0.95
    assert prepared.places is not None
    np.testing.assert_allclose(prepared.places[0, :2], (1 - 160 / 168) / 2)


PROCESSORS: dict[str, tuple[dict[str, Any], Any]] = {  # and the box that an image of 400 x 200 is seen in
    "centre crop": ({"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 32}, (0.3, 0.1, 0.7, 0.9)),
    "squash": ({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}, (0, 0, 1, 1)),
    "squash and crop": (
        {"image_processor_type": "DeiTImageProcessor", "size": {"height": 40, "width": 40}, "crop_size": 32},
        (0.1, 0.1, 0.9, 0.9),
    ),
    "part": ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.8}, (0.3, 0.1, 0.7, 0.9)),
    "crop alone": ({"image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": 32}, (0.46, 0.42, 0.54, 0.58)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_transformers(tmp_path: Path, name: str) -> None:
    stated, box = PROCESSORS[name]
    stated = stated | {"image_mean": HALF, "image_std": HALF, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    tower = VIT_CONFIG | {"model_type": "clip_vision_model"}
    settings = {"library": "transformers", "architecture": "x", "tower": tower}
    settings |= {"projector": [{"in": 32, "out": 4, "bias": False}]}
    prepared = EncoderEyes(settings, tmp_path).prepare(ramp((400, 200)))
    assert prepared.places is not None
    np.testing.assert_allclose(prepared.places, grid_boxes(4, 4, box), atol=1e-12)
    agree(prepared, [prepared.inputs["pixel_values"]], prepared.places, HALF, HALF)


def test_a_processor_that_pads_leaves_the_places_open(tmp_path: Path) -> None:
    stated = {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32, "do_pad": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    settings = {
        "library": "transformers",
        "architecture": "x",
        "tower": VIT_CONFIG | {"model_type": "clip_vision_model"},
    }
    settings |= {"projector": [{"in": 32, "out": 4, "bias": False}]}
    assert EncoderEyes(settings, tmp_path).prepare(ramp((64, 64))).places is None


def test_a_box_that_is_padded_reaches_over_the_edges() -> None:
    assert centred((100, 50), (20, 20), (20, 20), "longest") == (0, -0.5, 1, 1.5)
    assert centred((100, 50), (20, 10), (20, 20), "squash") == (0, -0.5, 1, 1.5)


LENS = {"image_mean": HALF, "image_std": HALF, "crop_size": 56}


def places(
    eyes: Any, settings: dict[str, Any], folder: Path, picture_size: tuple[int, int], edge: int = 56
) -> tuple[Prepared, np.ndarray]:
    (folder / "preprocessor_config.json").write_text(json.dumps(LENS | {"size": {"shortest_edge": edge}}))
    prepared = eyes(settings, folder).prepare(ramp(picture_size))
    assert prepared.places is not None and prepared.places.shape == (prepared.tokens, 4)
    return prepared, prepared.places


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("edge", [56, 70])
def test_one_view_of_llava(tmp_path: Path, aspect: str, size: tuple[int, int], edge: int) -> None:
    settings = config(image_aspect_ratio=aspect)
    prepared, boxes = places(LlavaEyes, settings, tmp_path, size, edge)
    agree(prepared, list(prepared.inputs["pixel_values"]), boxes, HALF, HALF)
    if size == (400, 200) and edge == 56:
        corner = (0, -0.5, 0.25, 0) if aspect == "pad" else (0.25, 0, 0.375, 0.25)
        np.testing.assert_allclose(boxes[0], corner, atol=1e-12)
    if size == (400, 200) and edge == 70:  # four fifths of the square are kept
        np.testing.assert_allclose(boxes[0, :2], (0.1, -0.3) if aspect == "pad" else (0.3, 0.1))


def test_a_class_token_has_no_place(tmp_path: Path) -> None:
    _, boxes = places(LlavaEyes, config(mm_vision_select_feature="cls_patch"), tmp_path, (100, 100))
    np.testing.assert_allclose(boxes[0], 0)
    np.testing.assert_allclose(boxes[1:], grid_boxes(4, 4))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("edge", [56, 70])
def test_views_one_after_another(tmp_path: Path, size: tuple[int, int], edge: int) -> None:
    prepared, boxes = places(LlavaEyes, anyres("flat"), tmp_path, size, edge)
    agree(prepared, list(prepared.inputs["pixel_values"]), boxes, HALF, HALF)


def test_views_of_an_image_of_400_by_200(tmp_path: Path) -> None:
    """It is scaled to 112 x 56, two views side by side: 4 x 4 tokens of the whole, 4 x 8 of the map."""
    whole, cells = grid_boxes(4, 4), grid_boxes(4, 8)
    flat = places(LlavaEyes, anyres("flat"), tmp_path, (400, 200))[1]
    np.testing.assert_allclose(
        flat, np.concatenate([whole, grid_boxes(4, 4, (0, 0, 0.5, 1)), grid_boxes(4, 4, (0.5, 0, 1, 1))])
    )
    spatial = places(LlavaEyes, anyres("spatial"), tmp_path, (400, 200))[1]
    np.testing.assert_allclose(spatial, np.concatenate([whole, cells]))
    unpad = places(LlavaEyes, anyres("spatial_unpad"), tmp_path, (400, 200))[1]
    rows = np.concatenate([cells.reshape(4, 8, 4), np.zeros((4, 1, 4))], 1)
    np.testing.assert_allclose(unpad, np.concatenate([whole, rows.reshape(-1, 4)]))


def test_views_that_are_padded_and_unpadded(tmp_path: Path) -> None:
    """320 x 80 goes into 112 x 56 as 112 x 28, with 14 pixels of padding above and below; a patch has 14 pixels."""
    points = {"image_grid_pinpoints": [[112, 56]]}
    spatial = places(LlavaEyes, anyres("spatial", **points), tmp_path, (320, 80))[1]
    np.testing.assert_allclose(spatial[16:], grid_boxes(4, 8, (0, -0.5, 1, 1.5)))
    unpad = places(LlavaEyes, anyres("spatial_unpad", **points), tmp_path, (320, 80))[1]
    rows = np.concatenate([grid_boxes(2, 8).reshape(2, 8, 4), np.zeros((2, 1, 4))], 1)
    np.testing.assert_allclose(unpad[16:], rows.reshape(-1, 4), atol=1e-12)


@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("whole", [True, False])
def test_mgm(tmp_path: Path, aspect: str, whole: bool) -> None:
    settings = mgm(image_aspect_ratio=aspect, image_grid=2, image_global=whole, image_size_aux=128)
    prepared, boxes = places(MgmEyes, settings, tmp_path, (400, 200))
    seen = (0, -0.5, 1, 1.5) if aspect == "pad" else (0.25, 0, 0.75, 1)
    left, top, right, bottom = seen
    x, y = (left + right) / 2, (top + bottom) / 2
    parts = [(left, top, x, y), (x, top, right, y), (left, y, x, bottom), (x, y, right, bottom)]
    views = list(prepared.inputs["pixel_values"])
    if whole:  # the last view, but the first in the prompt
        parts, views = [seen, *parts], [views[-1], *views[:-1]]
    np.testing.assert_allclose(boxes, np.concatenate([grid_boxes(4, 4, part) for part in parts]))
    agree(prepared, views, boxes, HALF, HALF)


def test_mgm_with_one_view(tmp_path: Path) -> None:
    prepared, boxes = places(MgmEyes, mgm(image_aspect_ratio="square"), tmp_path, (200, 400))
    assert prepared.grid == (1, 4, 4)
    np.testing.assert_allclose(boxes, grid_boxes(4, 4, (0, 0.25, 1, 0.75)))


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_slime(tmp_path: Path, merge: str) -> None:
    """50 x 112 fits two views of 56 pixels with 3 pixels of padding on either side, each seen by 2 x 2 queries."""
    prepared, boxes = places(SlimeEyes, slime(mm_patch_merge_type=merge), tmp_path, (50, 112))
    assert prepared.inputs["slices"].tolist() == [2, 1]
    np.testing.assert_allclose(boxes[:16], grid_boxes(4, 4), err_msg="the whole image")
    np.testing.assert_allclose(boxes[16], 0, err_msg="the separator")
    np.testing.assert_allclose(boxes[17:], grid_boxes(4, 2, (-3 / 50, 0, 53 / 50, 1)))


def test_slime_with_views_side_by_side(tmp_path: Path) -> None:
    views = [grid_boxes(2, 2, (0, 0, 0.5, 1)), grid_boxes(2, 2, (0.5, 0, 1, 1))]
    flat = places(SlimeEyes, slime(mm_patch_merge_type="flat"), tmp_path, (112, 56))[1]
    np.testing.assert_allclose(flat[17:], np.concatenate(views))
    spatial = places(SlimeEyes, slime(mm_patch_merge_type="spatial"), tmp_path, (112, 56))[1]
    np.testing.assert_allclose(spatial[17:], grid_boxes(2, 4))


def test_slime_with_one_view(tmp_path: Path) -> None:
    boxes = places(SlimeEyes, slime(image_aspect_ratio="pad"), tmp_path, (112, 56))[1]
    np.testing.assert_allclose(boxes, grid_boxes(4, 4, (0, -0.5, 1, 1.5)))


@pytest.mark.parametrize("change", [{}, {"use_local_only": True}, {"use_global_only": True}])
def test_the_tokens_that_slime_chooses_have_their_own_places(tmp_path: Path, change: dict[str, Any]) -> None:
    """Tokens of all views are looked at with nothing left out, and again as they are chosen."""
    settings = slime(mm_resampler_topp=0.4, **change)
    prepared = SlimeEyes(settings, tmp_path).prepare(picture(150, 100))
    branch = seeded(SlimeBranch(settings))
    (few,) = see(branch, prepared)
    everything = seeded(SlimeBranch(settings | {"mm_resampler_topp": 1.0, "mm_resampler_temp": 1e6}))
    (full,) = see(everything, prepared)
    assert prepared.places is not None and len(prepared.places) == len(full.tokens)
    if "use_global_only" in change:
        assert few.chosen is None
        return
    assert 0 < len(few.tokens) < len(full.tokens)
    assert torch.equal(few.tokens, full.tokens[few.chosen])
    assert full.chosen.tolist() == list(range(len(full.tokens)))


def test_other_branches_choose_nothing(tmp_path: Path) -> None:
    settings = anyres("flat")
    prepared = LlavaEyes(settings, tmp_path).prepare(picture(150, 100))
    (seen,) = see(seeded(LlavaBranch(settings)), prepared)
    assert seen.chosen is None


pair = test_fused_originals.pair  # the fixture


def test_attention_is_drawn_for_mgm_and_slime(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for SliME, of whose tokens only those have a place in the prompt that the question chose."""
    drawn: list[dict[str, np.ndarray]] = []
    monkeypatch.setattr("fuse.report.overlay.overlay", lambda image, maps, *rest, **how: drawn.append(maps))
    image = tmp_path / "a.png"
    picture(112, 56).save(image)
    asked = ("ask", pair / "out", "w5 w6", "--image", image, "--max-tokens", 2, "--attention", tmp_path / "seen.png")
    ran = fuse_here(*asked)
    assert ran.code == 0, ran.err
    (maps,) = drawn
    assert set(maps) == {"mgm", "slime"}
    assert all(found.shape == (56, 112) and found.sum() > 0 for found in maps.values())
