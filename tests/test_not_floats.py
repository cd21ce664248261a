"""Members whose weights are integers, float8 or quantised: one sentence, with the tensor, the member and the dtype."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import recipe_members
from tests.cli import fuse_here

FIRST = "model.layers.0.mlp.up_proj.weight"
EYE = "vision_tower.encoder.layers.0.mlp.fc1.weight"
FLOATS = "fuse merges F64, F32, F16, BF16"


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("members")
    for kind in ("llama", "llava"):
        recipe_members.save(kind, root / kind, 1)
    return root


def planned(members: Path, tmp_path: Path, kind: str, changes: dict[str, torch.Tensor], config: object = None) -> str:
    """What `fuse plan` says of a member with other tensors, without the folder's name."""
    folder = tmp_path / "m"
    folder.mkdir()
    for file in (members / kind).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file({**load_file(folder / "model.safetensors"), **changes}, folder / "model.safetensors")
    if config is not None:
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(told | {"quantization_config": config}))
    vision = "vision: [m]" if kind == "llava" else ""
    (tmp_path / "r.yaml").write_text(f"members: {{m: m}}\nlanguage: {{method: linear, weights: 1}}\n{vision}\n")
    ran = fuse_here("plan", tmp_path / "r.yaml")
    assert ran.code == 3, ran
    return ran.err.replace(f"{tmp_path}/", "").removeprefix("fuse: ").rstrip()


def like(members: Path, kind: str, name: str, dtype: torch.dtype) -> torch.Tensor:
    return load_file(members / kind / "model.safetensors")[name].mul(100).to(dtype)


@pytest.mark.parametrize(("dtype", "told"), [(torch.int8, "I8"), (torch.int32, "I32"), (torch.uint8, "U8")])
def test_integers(members: Path, tmp_path: Path, dtype: torch.dtype, told: str) -> None:
    found = planned(members, tmp_path, "llama", {FIRST: like(members, "llama", FIRST, dtype)})
    assert found == f"m/model.safetensors: tensor {FIRST!r} has dtype {told}, which cannot be merged ({FLOATS})"


def test_integers_of_an_encoder(members: Path, tmp_path: Path) -> None:
    found = planned(members, tmp_path, "llava", {EYE: like(members, "llava", EYE, torch.int8)})
    assert found == f"m/model.safetensors: tensor {EYE!r} has dtype I8, which cannot be merged ({FLOATS})"


@pytest.mark.parametrize(("kind", "name"), [("llama", FIRST), ("llava", EYE)])
def test_float8(members: Path, tmp_path: Path, kind: str, name: str) -> None:
    found = planned(members, tmp_path, kind, {name: like(members, kind, name, torch.float8_e4m3fn)})
    told = f"m/model.safetensors: tensor {name!r}: dtype F8_E4M3 is quantised and cannot be merged"
    assert found == f"{told} (use the unquantised checkpoint)"


HINT = "these are the names of quantised weights; merge the unquantised checkpoint"
EXTRA = {
    "GPTQ": "mlp.up_proj.qweight", "AWQ": "mlp.up_proj.scales", "fp8": "mlp.up_proj.weight_scale_inv",
    "compressed-tensors": "mlp.up_proj.weight_packed", "bitsandbytes": "mlp.up_proj.weight.quant_map",
    "bitsandbytes int8": "mlp.up_proj.SCB",
}  # fmt: skip


@pytest.mark.parametrize("scheme", EXTRA)
def test_tensors_of_quantisers(members: Path, tmp_path: Path, scheme: str) -> None:
    name = f"model.layers.0.{EXTRA[scheme]}"
    found = planned(members, tmp_path, "llama", {name: torch.ones(3)})
    assert found == f"m: tensor {name!r} is not part of a llama checkpoint ({HINT})"


def test_a_config_that_says_so(members: Path, tmp_path: Path) -> None:
    found = planned(members, tmp_path, "llama", {}, {"quant_method": "awq", "bits": 4})
    told = "m/config.json: quantization_config: the weights are quantised (awq)"
    assert found == f"{told} (merge the unquantised checkpoint)"
