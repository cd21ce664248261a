"""Anyres geometry against the official tables, and preprocessing against a float64 oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fuse.branches.anyres import best_resolution, fitted, map_tokens, sliced_resolution, unpadded
from fuse.branches.llava_original import LlavaEyes
from fuse.errors import CheckpointError
from tests.original_branches import (
    GOLDENS,
    anyres,
    config,
    picture,
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


def test_pinpoints_may_be_text(tmp_path: Path) -> None:
    settings = config(image_aspect_ratio="anyres", image_grid_pinpoints="[(112, 56), (56, 112)]")
    assert LlavaEyes(settings, tmp_path).prepare(picture(100, 50)).layout == (48,)


def test_a_processor_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"crop_size": 224, "size": 224}')
    with pytest.raises(CheckpointError) as caught:
        LlavaEyes(config(), tmp_path)
    assert str(caught.value) == f"{path}: makes views of 224 pixels, but the tower sees 56"
