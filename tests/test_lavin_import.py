"""LaVIN's checkpoints as the authors save them, sorted into a graft and a projector through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fuse.errors import CheckpointError
from fuse.grafts import lavin_files
from fuse.importers import About
from fuse.importers.lavin import sort_keys
from tests import tiny_processors, tiny_text
from tests.cli import fuse_forked
from tests.tiny_lavin import TOWER, official, saved


def test_an_official_file_becomes_a_graft_and_a_projector(tmp_path: Path) -> None:
    state = official()
    file = saved(tmp_path / "checkpoint-19.pth", state)
    told = fuse_forked("import", "lavin", str(file), str(tmp_path / "donor"), "--json")
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert set(report["dropped"]) == {"epoch", "scaler", "optimizer", "args"}
    assert set(report["went"]) == set(state)
    graft = json.loads((tmp_path / "donor" / "graft.json").read_text())
    assert graft["kind"] == "lavin" and graft["host"]["model_type"] == "llama" and graft["host"]["hidden_size"] == 16
    assert graft["config"] == {
        "hidden_size": 16, "layers": 2, "adapter_dim": 8, "groups": 2, "adapter_type": "attn", "adapter_scale": 1.0,
        "temperature": 10.0,
        "tower": {"width": 12, "layers": 8, "adapter_dim": 4, "groups": 2, "visual_adapter_type": "router"},
    }  # fmt: skip
    projector = json.loads((tmp_path / "donor" / "projector.json").read_text())
    assert projector["config"] == {"width": 12, "hidden": 6, "hidden_size": 16, "layers": [3, 7]}
    found = load_file(tmp_path / "donor" / "graft.safetensors")
    assert torch.equal(found["tower.7.adapter_attn.conv_D.bias"], state[f"{TOWER}7.adapter_attn.conv_D.bias"])
    assert torch.equal(found["layers.1.adapter_attn.conv_A.weight"], state["layers.1.adapter_attn.conv_A.weight"])
    eyes = load_file(tmp_path / "donor" / "projector.safetensors")
    assert torch.equal(eyes["conv_B.weight"], state["adapter_proj.conv_B.weight"])
    assert len(found) + len(eyes) == len(state)


def test_both_halves_record_their_host(tmp_path: Path) -> None:
    host = tiny_text.build("llama", hidden_size=16)
    host.save_pretrained(tmp_path / "llama")
    tiny_processors.tokenizer().save_pretrained(tmp_path / "llama")
    file = saved(tmp_path / "checkpoint.pth", official(deep=4))
    told = fuse_forked("import", "lavin", file, tmp_path / "donor", "--host", tmp_path / "llama")
    assert told.code == 0, told.err
    for name in ("graft.json", "projector.json"):
        found = json.loads((tmp_path / "donor" / name).read_text())["host"]
        assert (found["hidden_size"], found["layers"], found["norm"]) == (16, 2, "rms")
        assert found["embedding"]
    file = saved(tmp_path / "deep.pth", official(layers=3))
    told = fuse_forked("import", "lavin", file, tmp_path / "deep", "--host", tmp_path / "llama")
    assert told.code == 3 and "layers is 2, and the imported file was made for 3" in told.err
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("kind", ["normal", "router", "router_block"])
@pytest.mark.parametrize("scope", ["attn", "block"])
def test_kinds_of_adapters_are_told_by_their_names(kind: str, scope: str) -> None:
    imported = sort_keys(official(kind=kind, scope=scope), About())
    assert imported.graft is not None
    assert imported.graft.config["tower"]["visual_adapter_type"] == kind
    assert imported.graft.config["adapter_type"] == scope
    assert {n: tuple(t.shape) for n, t in imported.graft.tensors.items()} == lavin_files.shapes(imported.graft.config)


def test_what_shapes_do_not_tell() -> None:
    def config(state: dict[str, torch.Tensor], **options: Any) -> dict[str, Any]:
        imported = sort_keys(state, About(options))
        assert imported.graft is not None
        return imported.graft.config

    assert config(official(width=5120, deep=0, layers=1))["temperature"] == 5.0  # the authors' 13B scripts
    told = config(official(), temperature=2, adapter_scale=0.1)
    assert (told["temperature"], told["adapter_scale"]) == (2.0, 0.1)


def test_the_training_script_said_it(tmp_path: Path) -> None:
    def config(name: str, *extra: str, **options: Any) -> Any:
        file = saved(tmp_path / f"{name}.pth", official(), **options)
        ran = fuse_forked("import", "lavin", file, tmp_path / name, *extra)
        assert ran.code == 0, ran.err
        return json.loads((tmp_path / name / "graft.json").read_text())["config"]

    told = config("as_stored", temperature=5.0, adapter_scale=0.5)
    assert (told["temperature"], told["adapter_scale"]) == (5.0, 0.5)
    told = config("as_asked", "--set", "temperature=3", temperature=5.0, adapter_scale=0.5)
    assert (told["temperature"], told["adapter_scale"]) == (3.0, 0.5)
    file = saved(tmp_path / "wrong.pth", official(), temperature=-1.0)
    ran = fuse_forked("import", "lavin", file, tmp_path / "wrong")
    assert ran.code == 3
    assert ran.err.endswith(
        "args: temperature is -1.0, and scores are divided by it: it is above 0 (--set temperature=NUMBER)\n"
    )


def test_a_file_without_a_tower_or_a_projector() -> None:
    state = official(deep=0)
    imported = sort_keys(state, About())
    assert imported.graft is not None and imported.graft.config["tower"] is None
    assert imported.projector is not None and imported.projector.config["layers"] == [3, 7, 11, 15, 19, 23]
    alone = {name: tensor for name, tensor in state.items() if not name.startswith("adapter_proj.")}
    assert sort_keys(alone, About()).projector is None


def test_a_whole_model_leaves_its_other_weights_out() -> None:
    state = official() | {
        "layers.0.attention.wq.weight": torch.zeros(16, 16),
        "backbone.visual.conv1.weight": torch.zeros(2),
    }
    told = "no adapter: language model and encoder come from their own folders"
    assert sort_keys(state, About()).dropped == {
        "layers.0.attention.wq.weight": told,
        "backbone.visual.conv1.weight": told,
    }


def lost(*names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in official().items() if name not in names}


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"adapter_proj.conv_A.weight": torch.zeros(6, 12)}, "holds no adapters of a language model"),
        ({n: t for n, t in official().items() if not n.startswith("layers.")}, "holds no adapters of a language model"),
        (lost("adapter_modality_embedding.weight"), "tensor 'adapter_modality_embedding.weight' is missing"),
        (lost(f"{TOWER}0.adapter_attn.conv_B.weight"), f"tensor '{TOWER}0.adapter_attn.conv_B.weight' is missing"),
        (lost("adapter_proj.conv_B.weight"), "tensor 'adapter_proj.conv_B.weight' is missing"),
        (official() | {"adapter_modality_embedding.weight": torch.zeros(3)}, "tensor 'adapter_modality_embedding.weight' has shape [3], which is no matrix"),
        (official() | {"layers.0.adapter_attn.conv_B.weight": torch.zeros(16, 0, 1)}, "is no LaVIN checkpoint: groups is 0, not a whole number above 0"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_of_lavin(state: dict[str, torch.Tensor], problem: str) -> None:
    with pytest.raises(CheckpointError) as error:
        sort_keys(state, About())
    assert error.value.problem == problem


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (lost("layers.1.adapter_attn.conv_D.bias"), "holds nothing for 'layers.1.adapter_attn.conv_D.bias' of lavin"),
        (official() | {"layers.0.adapter_attn.conv_E.bias": torch.zeros(4)}, "tensor 'layers.0.adapter_attn.conv_E.bias' is no part of lavin as the others make it"),
        (official() | {f"{TOWER}1.adapter_attn.conv_A.bias": torch.zeros(5)}, f"tensor '{TOWER}1.adapter_attn.conv_A.bias' has shape [5], and the others make it [4]"),
    ],
)  # fmt: skip
def test_the_framework_refuses_what_is_not_whole(state: dict[str, torch.Tensor], told: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "checkpoint.pth", state)
    found = fuse_forked("import", "lavin", str(file), str(tmp_path / "donor"))
    assert found.code == 3 and told in found.err, found.err
    assert not (tmp_path / "donor").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("temperature=warm", "--set: temperature is 'warm', not a number"),
        ("temperature=0", "--set: temperature is 0, and scores are divided by it: it is above 0"),
        ("scale=1", "--set: the import of lavin has no option 'scale'"),
    ],
)  # fmt: skip
def test_options_are_numbers(given: str, told: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "checkpoint.pth", official())
    found = fuse_forked("import", "lavin", str(file), str(tmp_path / "donor"), "--set", given)
    assert found.code == 2 and told in found.err, found.err
