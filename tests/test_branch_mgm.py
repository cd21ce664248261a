"""MGM branches against the official code's numbers, its auxiliary tower against timm's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.convnext import ConvNeXt
from torch.nn import functional

from fuse.branches.clip_tower import look
from fuse.branches.convnext import ConvNext
from fuse.branches.mgm import MgmBranch, MgmEyes
from fuse.branches.original_tokens import original_tokens
from fuse.errors import CheckpointError
from tests.original_branches import (
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

AUX = {"model_type": "convnext", "depths": [1, 1, 2, 1], "dims": [2, 4, 6, 8], "norm_eps": 1e-6}


def mgm(**changes: Any) -> dict[str, Any]:
    """The config of a tiny MGM: CLIP sees 4 x 4 patches, the auxiliary tower 16 x 16 cells."""
    towers = {**config()["towers"], "vision_tower_aux": AUX}
    return config(**{"model_type": "mgm", "mm_hidden_size_aux": 20, "image_size_aux": 64, "towers": towers, **changes})


def tower(patches: int, **changes: Any) -> dict[str, Any]:
    """`towers` with a CLIP of that many patches along an edge."""
    towers = mgm()["towers"]
    return {**towers, "vision_tower": {**towers["vision_tower"], "image_size": 14 * patches}, **changes}


def mining(name: str) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    """A branch with the golden's parameters. The towers' features are given, so their own weights do not matter."""
    tensors, facts = golden(name)
    made = facts["constructor"]
    grid, patches = made.get("image_grid", 1), made["patch_num"]
    settings = mgm(
        towers=tower(patches), image_grid=grid, image_global=made.get("image_global", False),
        image_size_aux=4 * made["cell"] * patches * grid,
    )  # fmt: skip
    branch = built(MgmBranch(settings), canonical(tensors, settings))
    return branch.eval(), tensors, facts


@pytest.mark.parametrize("name", ["mgm_patch_mining", "mgm_patch_mining_s1"])
def test_patches_mine_what_the_official_code_mines(name: str) -> None:
    branch, tensors, facts = mining(name)
    features, details = tensors["input.lr_features"], tensors["input.aux_features"]
    with torch.no_grad():
        assert difference(branch.mine(features, details), tensors["output.mined"]) <= float(facts["tolerance"])
        tokens = torch.stack([branch.tokens(f[None], d[None]) for f, d in zip(features, details, strict=True)])
    assert difference(tokens, tensors["output.tokens"]) <= float(facts["tolerance"])


@pytest.mark.parametrize("name", ["mgm_hd_grid2", "mgm_hd_grid2_global"])
def test_a_grid_gives_the_official_tokens(name: str) -> None:
    branch, tensors, facts = mining(name)
    views = tensors["input.local_features"]
    if "global" in name:
        views = torch.cat([views, tensors["input.global_features"][:, None]], dim=1)
    with torch.no_grad():
        tokens = torch.stack(
            [branch.tokens(v, d[None]) for v, d in zip(views, tensors["input.aux_features"], strict=True)]
        )
    assert difference(tokens, tensors["output.tokens"]) <= float(facts["tolerance"])


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_the_auxiliary_tower_is_timms_convnext(eps: float) -> None:
    towers = {"towers": {"vision_tower_aux": {**AUX, "norm_eps": eps}}}
    ours = seeded(ConvNext(towers))
    theirs = ConvNeXt(depths=(1, 1, 2, 1), dims=(2, 4, 6, 8), norm_eps=eps).eval()
    given = {name.removeprefix("vision_"): t for name, t in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(given, strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cells, maps = theirs.stem(images), []
        for stage in theirs.stages:
            cells = stage(cells)
            maps.append(functional.interpolate(cells, size=(16, 16), mode="bilinear", align_corners=False))
        found = ours(images)
    assert found.shape == (2, 20, 16, 16)
    assert difference(found, torch.cat(maps, dim=1)) < 1e-5


@pytest.mark.parametrize(("grid", "overall", "tokens"), [(1, False, 16), (1, True, 16), (2, False, 64), (2, True, 80)])
def test_the_layout_counts_what_the_module_gives(grid: int, overall: bool, tokens: int, tmp_path: Path) -> None:
    settings = mgm(image_grid=grid, image_global=overall, image_size_aux=64 * grid)
    prepared = MgmEyes(settings, tmp_path).prepare(picture(70, 30))
    (seen,) = see(seeded(MgmBranch(settings)), prepared, attention=True)
    assert prepared.layout == (tokens,) and seen.tokens.shape == (tokens, 16)
    assert original_tokens("mgm", settings, (70, 30)) == tokens
    assert prepared.grid == ((1, 4, 4) if grid == 1 else None)
    assert seen.attention.shape == (tokens,)


def test_views_are_cut_from_the_auxiliary_picture(tmp_path: Path) -> None:
    image = picture(70, 30, 2)
    prepared = MgmEyes(mgm(image_grid=2, image_global=True, image_size_aux=128), tmp_path).prepare(image)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    squared = Image.new("RGB", (70, 70), tuple(int(c * 255) for c in mean))
    squared.paste(image, (0, 20))
    wanted = (np.asarray(squared.resize((128, 128), Image.Resampling.BICUBIC), dtype=np.float64) / 255 - mean) / std
    picture_in = prepared.inputs["pixel_values_aux"]
    assert np.abs(picture_in[0].numpy().transpose(1, 2, 0) - wanted).max() < 1e-6
    at = (np.arange(112) + 0.5) * 128 / 112 - 0.5  # where the small picture samples the large one
    low = np.clip(np.floor(at).astype(int), 0, 126)
    part = np.clip(at, 0, 127) - low
    rows = wanted[low] * (1 - part)[:, None, None] + wanted[low + 1] * part[:, None, None]
    small = rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    views = prepared.inputs["pixel_values"].numpy().transpose(0, 2, 3, 1)
    quarters = [small[y : y + 56, x : x + 56] for y in (0, 56) for x in (0, 56)]
    assert views.shape == (5, 56, 56, 3)
    assert np.abs(views[:4] - np.stack(quarters)).max() < 1e-4  # torch places the samples in float32
    assert np.abs(views[4] - small.reshape(56, 2, 56, 2, 3).mean((1, 3))).max() < 1e-4


def test_the_whole_is_towers_mining_and_projector(tmp_path: Path) -> None:
    branch = seeded(MgmBranch(mgm()))
    eyes = MgmEyes(mgm(), tmp_path)
    prepared = [eyes.prepare(picture(60, 60, seed)) for seed in (1, 2)]
    seen = see(branch, *prepared)
    for p, s in zip(prepared, seen, strict=True):
        with torch.no_grad():
            features, _ = look(branch.vision_tower, p.inputs["pixel_values"], branch.sight)
            details = branch.vision_tower_aux(p.inputs["pixel_values_aux"])
            wanted = branch.multi_modal_projector(features + branch.mine(features, details))[0]
        assert difference(s.tokens, wanted) < 1e-5


def test_built_on_meta_and_loaded_by_transformers_it_gives_the_same_tokens(tmp_path: Path) -> None:
    settings = mgm(image_grid=2, image_global=True, image_size_aux=128)
    with torch.device("meta"):
        assert all(t.is_meta for t in MgmBranch(settings).state_dict().values())
    branch = seeded(MgmBranch(settings))
    prepared = MgmEyes(settings, tmp_path).prepare(picture(60, 20))
    loaded = round_trip(branch, settings, MgmBranch, tmp_path / "saved")
    assert torch.equal(see(loaded, prepared)[0].tokens, see(branch, prepared)[0].tokens)


def test_in_bfloat16_it_sees_nearly_the_same(tmp_path: Path) -> None:
    settings = mgm(image_grid=2, image_global=True, image_size_aux=128)
    nearly_the_same(seeded(MgmBranch(settings)), MgmEyes(settings, tmp_path).prepare(picture(60, 20)))


def test_parameter_names_are_the_canonical_ones() -> None:
    names = {n for n in MgmBranch(mgm()).state_dict() if not n.startswith("vision_tower.") and ".blocks." not in n}
    pairs = ("vision_tower_aux.vision_stem.0", "vision_tower_aux.vision_stem.1", "multi_modal_projector.linear_1",
             "multi_modal_projector.linear_2", *(f"vlm_uni_{k}_projector.{n}" for k in ("query", "aux", "val") for n in (0, 1)),
             *(f"vision_tower_aux.vision_stages.{s}.downsample.{n}" for s in (1, 2, 3) for n in (0, 1)))  # fmt: skip
    assert names == {f"{pair}.{kind}" for pair in pairs for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size_aux": None}, "config.json: image_size_aux 320 makes a map of 80 cells an edge, which 1 x 3 patches do not divide"),
        ({"image_grid": 2.5}, "config.json: image_grid is 2.5, not a positive whole number"),
        ({"mm_hidden_size_aux": 21}, "config.json: mm_hidden_size_aux is 21, but the auxiliary tower is 20 wide"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[42, 84]]}, "config.json: image_aspect_ratio is 'anyres', which MGM does not have"),
        ({"mm_vision_select_feature": "cls_patch"}, "config.json: mm_vision_select_feature is 'cls_patch', which MGM does not have"),
        ({"towers": {"vision_tower": tower(3)["vision_tower"]}}, "config.json: towers.vision_tower_aux is missing"),
        ({"towers": tower(3, vision_tower_aux={**AUX, "dims": [2, 4]})}, "config.json: towers.vision_tower_aux is not a convnext with as many depths as dims"),
        ({"towers": tower(3, vision_tower_aux={**AUX, "norm_eps": 2.0})}, "config.json: towers.vision_tower_aux.norm_eps is 2.0, not a small number"),
    ],
)  # fmt: skip
def test_what_it_does_not_know_it_says(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        MgmBranch(mgm(**{"towers": tower(3), "image_size_aux": 48, **changes}))
    assert str(caught.value) == message
