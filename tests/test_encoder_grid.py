"""What a branch's JSON says of its tokens is what the tower gives, and then nothing is built to prepare an image."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from fuse.branches import encoder, encoder_towers, open_clip_files
from fuse.branches.encoder import EncoderBranch, EncoderEyes
from fuse.branches.encoder_files import read_encoder
from fuse.branches.encoder_grid import grid_for, stated_grid
from fuse.branches.encoder_layers import Stack
from fuse.branches.tower_types import TOWER_TYPES
from fuse.errors import CheckpointError
from tests.test_encoder_files import hollow
from tests.tiny_encoders import OPEN_CLIP, install, see, timm_branch, whole_clip, write_projector, write_transformers

# timm's architecture: size of a token at the end, and whether the JSON states the grid
TIMM = {
    "test_vit": (64, True), "test_vit_relpos": (96, False), "eva02_tiny_patch14_224": (192, True),
    "vit_tiny_r_s16_p8_224": (192, False), "convnext_atto": (320, False), "test_resnet": (96, False),
    "hiera_tiny_224": (768, False), "sam2_hiera_tiny": (768, False), "swin_tiny_patch4_window7_224": (768, False),
}  # fmt: skip
BESIDE = {
    "test_vit_relpos",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
}  # stated where a config.json tells the size


def built(eyes: EncoderEyes, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """The image prepared, and how many towers were built for it."""
    counted: list[Any] = []
    monkeypatch.setattr(encoder, "build_tower", lambda *c: counted.append(c) or encoder_towers.build_tower(*c))
    encoder._grid.cache_clear()
    return eyes.prepare(image), len(counted)


def agree(config: dict[str, Any], folder: Path, states: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the statement, the eyes say what the tower gives."""
    assert ("grid" in config) is states
    image = Image.new("RGB", (70, 90), "red")
    prepared, towers = built(EncoderEyes(config, folder), image, monkeypatch)
    assert towers == (0 if states else 1)
    if states:
        without = {key: value for key, value in config.items() if key != "grid"}
        other, others = built(EncoderEyes(without, folder), image, monkeypatch)
        assert others == 1
        assert (prepared.layout, prepared.grid) == (other.layout, other.grid)
        assert (prepared.places is None) == (other.places is None)
    with torch.device("meta"):
        branch = EncoderBranch(config).eval()
    (seen,) = see(branch, prepared.inputs["pixel_values"].to("meta")[None])
    assert prepared.layout == (len(seen.tokens),)


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("beside", [False, True])
def test_timm(name: str, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        trunk: Any = timm.create_model(name, num_classes=0)
    hollow(tmp_path / "w.safetensors", trunk, "")
    width, states = TIMM[name]
    if beside:
        size = list(trunk.default_cfg["input_size"])
        (tmp_path / "config.json").write_text(
            json.dumps({"architecture": name, "pretrained_cfg": {"input_size": size}})
        )
        states = states or name in BESIDE or name.startswith("vit_tiny_r_")
    entry = {"name": "c", "timm": name, "weights": "w.safetensors", "projector": write_projector(tmp_path, width)}
    agree(read_encoder(entry, relative_to=tmp_path).config, tmp_path, states, monkeypatch)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(tmp_path)
    monkeypatch.setattr(open_clip_files, "_package", lambda: package)
    whole_clip(name, tmp_path)
    width = {"resnet": 256, "test_vit": 64, "siglip": 96, "convnext": 64, "eva": 192}.get(name, 32)
    entry = {"name": "c", "open_clip": name, "weights": "clip.safetensors"}
    files = read_encoder({**entry, "projector": write_projector(tmp_path, width)}, relative_to=tmp_path)
    agree(files.config, tmp_path, name != "convnext" or "grid" in files.config, monkeypatch)


@pytest.mark.parametrize("kind", TOWER_TYPES)
def test_transformers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_transformers(kind, tmp_path / "encoder")
    entry = {"name": "c", "encoder": "encoder", "projector": write_projector(tmp_path, 32)}
    agree(read_encoder(entry, relative_to=tmp_path).config, tmp_path / "encoder", True, monkeypatch)


@pytest.mark.parametrize(("size", "stride", "square", "stack", "wanted"), [
    ((224, 224), 16, None, Stack(12), ([224, 224], [14, 14])),
    ((384, 378), 14, None, Stack(12), ([384, 378], [27, 27])),  # blocks leave the last pixels out
    ((384, 378), 14, None, None, None),  # others may pad
    ((384, 384), 32, None, Stack(4, (8, 16, 24, 32)), ([384, 384], [12, 12])),
    ((380, 380), 32, None, Stack(4, (8, 16, 24, 32)), None),
    ((224, 224), 16, (16, 16), Stack(12), None),  # the table is for another size
    (None, 14, (37, 37), Stack(12), ([518, 518], [37, 37])),
    (None, None, (14, 14), Stack(12), None),
    (None, 14, None, Stack(12), None),
    ((224, 224), None, (14, 14), Stack(12), ([224, 224], [14, 14])),
    ((224, 224), None, None, None, None),
])  # fmt: skip
def test_what_is_certain(size: Any, stride: Any, square: Any, stack: Any, wanted: Any) -> None:
    told = {"grid": {"image": wanted[0], "tokens": wanted[1]}} if wanted else {}
    assert stated_grid(size, stride, square, stack) == told


def test_another_size_is_not_stated() -> None:
    stated = {"grid": {"image": [224, 112], "tokens": [14, 7]}}
    assert grid_for(stated, (224, 112)) == (14, 7)
    assert grid_for(stated, (112, 224)) is None and grid_for({}, (224, 112)) is None


@pytest.mark.parametrize("stated", [
    [7, 7], {"tokens": [7, 7]}, {"image": [224, 224], "tokens": [7]}, {"image": [224, 224], "tokens": [-7, -7]},
    {"image": [224, 224], "tokens": [True, 7]}, {"image": [224, 224], "tokens": [225, 1]},
    {"image": [224, 224], "tokens": [1, 225]},
])  # fmt: skip
def test_a_statement_that_cannot_be_one(stated: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        grid_for({"grid": stated}, (224, 224))
    assert str(caught.value) == f"config.json: branches: grid is {stated!r}, not the tokens of an image"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_another_thread_builds_meanwhile_is_its_own(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower has tables, so only its parameters are on meta while it is made."""
    create, others = timm.create_model, []

    def make(*args: Any, **kwargs: Any) -> nn.Module:
        thread = threading.Thread(target=lambda: others.append(nn.Linear(2, 2)))
        thread.start()
        made = create(*args, **kwargs)
        thread.join()
        own = nn.Linear(2, 2)
        where.append({own.weight.device.type, *(p.device.type for p in made.parameters())})
        return made

    where: list[set[str]] = []
    monkeypatch.setattr(timm, "create_model", make)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            branch = EncoderBranch(timm_branch("eva02_tiny_patch14_224", 192))
    finally:
        torch.set_default_dtype(before)
    assert where == [{"meta"}, {"meta"}] and len(others) == 2
    assert {p.device.type for p in branch.parameters()} == {"meta"} and {p.dtype for p in branch.parameters()} == {
        dtype
    }
    assert [other.weight.device.type for other in others] == ["cpu", "cpu"]
    assert nn.Linear(2, 2).weight.device.type == "cpu"
