"""A fused folder is opened by transformers before it is kept: what that finds, word for word."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.errors import CheckpointError
from fuse.model.check import check_loads
from tests import tiny_fused
from tests.test_fused_model import own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("fused")
    tiny_fused.fused({"a": own("llava", 1)[0], "b": own("llava_next", 2)[0]}, "a", where)
    return where


def changed(folder: Path, tmp_path: Path, change) -> Path:
    shutil.copytree(folder, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "x" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "x"


def test_a_whole_folder_passes(folder: Path) -> None:
    check_loads(folder)


def drop_newline(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["branches.b.image_newline"]


def drop_tower(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("branches.a.vision_tower.encoder.layers.1.mlp")]:
        del tensors[name]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["branches.a.extra.weight"] = torch.zeros(2)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["branches.b.image_newline"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop_newline, "the model wants tensor 'branches.b.image_newline' and it is not among the weights"),
        (
            drop_tower,
            "the model wants tensor 'branches.a.vision_tower.encoder.layers.1.mlp.fc1.bias' and it is not among the "
            "weights (4 such tensors)",
        ),
        (add, "tensor 'branches.a.extra.weight' is among the weights and the model does not want it"),
        (reshape, "tensor 'branches.b.image_newline' has another shape than the model wants"),
    ],
)
def test_what_does_not_load(folder: Path, tmp_path: Path, change, told: str) -> None:
    broken = changed(folder, tmp_path, change)
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{broken}: {told}')}$"):
        check_loads(broken)


def edited(folder: Path, tmp_path: Path, file: str, change) -> Path:
    shutil.copytree(folder, tmp_path / "x")
    path = tmp_path / "x" / file
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return tmp_path / "x"


def test_a_branch_whose_processor_does_not_open(folder: Path, tmp_path: Path) -> None:
    def evil(value) -> None:
        value["image_processor"]["image_processor_type"] = "Evil"

    with pytest.raises(CheckpointError, match="its processor does not load"):
        check_loads(edited(folder, tmp_path, "branches/a/processor_config.json", evil))


def test_a_branch_whose_processor_writes_another_placeholder(folder: Path, tmp_path: Path) -> None:
    def other(value) -> None:
        value["branches"][0]["config"]["image_token_index"] = 85
        value["branches"][0]["config"].pop("image_token_id", None)

    with pytest.raises(CheckpointError, match="llava takes no image of 320x240 pixels"):
        check_loads(edited(folder, tmp_path, "config.json", other))
