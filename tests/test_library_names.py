"""What a stranger's config may not name."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from fuse.branches.library_names import check_name, check_names
from fuse.errors import CheckpointError
from tests.tiny_vlm import VLM_TYPES, build

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "hub": (
        {"vision_config": {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/model"}},
        "vision_config.architecture: 'hf-hub:evil/model' is not the name of an architecture",
    ),
    "folder": (
        {"towers": [{"a": {"architecture": "local-dir:/etc"}}]},
        "towers[0].a.architecture: 'local-dir:/etc' is not the name of an architecture",
    ),
    "no text": ({"architecture": ["resnet18"]}, "architecture: ['resnet18'] is not the name of an architecture"),
    "line end": ({"architecture": "resnet18\n"}, "architecture: 'resnet18\\n' is not the name of an architecture"),
    "weights": (
        {"vision_config": {"architecture": "resnet18", "model_args": {"depth": 1, "checkpoint_path": "/x.pth"}}},
        "vision_config.model_args.checkpoint_path names a file to open; fuse never does",
    ),
    "values of timm": (
        {"model_args": {"pretrained_cfg": {"url": "https://x"}}},
        "model_args.pretrained_cfg names a file to open; fuse never does",
    ),
    "backbone": (
        {"vision_config": {"model_type": "detr", "backbone": "resnet50"}},
        "vision_config.backbone: 'resnet50' names a model to fetch; fuse never does",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_addresses_are_refused(case: str) -> None:
    config, told = BAD[case]
    with pytest.raises(CheckpointError) as caught:
        check_names(config)
    assert str(caught.value) == f"config.json: branches: {told}"


def test_names_are_not() -> None:
    check_names({"vision_config": {"architecture": "mobilenetv5_300m_enc.gemma3n", "model_args": {"depth": 3}}})
    check_names({"architecture": None, "backbone": None, "architectures": ["LlavaForConditionalGeneration", "a:b"]})
    check_name("vit_small_patch14_dinov2.lvd142m")
    with pytest.raises(CheckpointError, match=r"^config\.json: branches: timm: '\./x' is not the name of an archit"):
        check_name("./x")


@pytest.mark.parametrize("kind", VLM_TYPES)
def test_no_family_is_refused(kind: str) -> None:
    check_names(build(kind).config.to_dict())


@pytest.mark.parametrize("name", ["architecture", "model_args"])
def test_transformers_would_read_what_is_refused(name: str, tmp_path: Any) -> None:
    """If it did not, the check would have no reason."""
    torch.save({"stranger": torch.zeros(1)}, tmp_path / "w.pth")
    values: dict[str, Any] = {"architecture": "resnet18"}
    values |= {
        "architecture": {"architecture": f"local-dir:{tmp_path}"},
        "model_args": {"model_args": {"checkpoint_path": str(tmp_path / "w.pth")}},
    }[name]
    with pytest.raises(CheckpointError):
        check_names(values)
    with pytest.raises(Exception, match=r"stranger|Error\(s\) in loading|config\.json"):
        AutoModel.from_config(AutoConfig.for_model("timm_wrapper", **values))


def test_checking_needs_no_torch() -> None:
    code = "import sys, fuse.branches.library_names; print([m for m in ('torch', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
