"""LION's checkpoints as the authors save them, sorted into a graft and a projector through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fuse.branches import lion_aggregator_files
from fuse.errors import CheckpointError, RecipeError
from fuse.grafts import lion_files
from fuse.importers import About
from fuse.importers.lion import sort_keys
from tests.cli import Ran, fuse_forked
from tests.test_fused_seq2seq import save_t5


def official(
    width: int = 20,
    encoder: int = 2,
    decoder: int = 2,
    tower: int = 32,
    vision: bool = True,
    adapters: bool = True,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """What `LION-FlanT5-XL.pth` holds under "model", in tiny: names of the authors' modules, drawn from a seed."""
    generator = torch.Generator().manual_seed(0)
    stacks = {"encoder": encoder, "decoder": decoder}
    made = {"stacks": stacks, "width": width, "bottleneck": 4, "hint": True, **config}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in lion_files.shapes(made).items() if adapters else ():
        side, layer, inner = name.split(".", 2) if "." in name else (name, "", "")
        place = {"encoder": "1", "decoder": "2"}.get(side)
        shapes[f"t5_model.{side}.block.{layer}.layer.{place}.adapter.{inner}" if place else name] = shape
    if vision:
        sizes = {"width": tower, "heads": 4, "intermediate": 24, "inner": 40, "hidden_size": width}
        shapes |= lion_aggregator_files.shapes({"layers": [2, 1, 0], **sizes})
        shapes |= {"t5_proj.weight": (width, 12), "t5_proj.bias": (width,), "query_tokens": (1, 3, 12)}
        shapes |= {"Qformer.bert.encoder.layer.0.attention.self.query.weight": (12, 12), "ln_vision.weight": (tower,)}
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def saved(file: Path, state: dict[str, torch.Tensor]) -> Path:
    """With what the authors' training script saves beside."""
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    torch.save(
        {"model": state, "optimizer": optimizer, "scaler": None, "config": {"run": {"seed": 42}}, "epoch": 9}, file
    )
    return file


def run(tmp_path: Path, state: dict[str, torch.Tensor], *extra: object) -> Ran:
    return fuse_forked("import", "lion", saved(tmp_path / "LION.pth", state), tmp_path / "donor", *extra)


FOUR = ("--set", "heads=4")


def test_an_official_file_becomes_a_graft_and_a_projector(tmp_path: Path) -> None:
    state = official()
    save_t5(tmp_path / "t5")
    ran = run(tmp_path, state, *FOUR, "--host", tmp_path / "t5", "--json")
    assert (ran.code, ran.err) == (0, ""), ran
    report = json.loads(ran.out)
    left = {key: why for key, why in report["dropped"].items() if key in state}
    assert set(left) == {key for key in state if key.startswith(("Qformer", "query", "t5_proj", "ln_vision"))}
    assert set(left.values()) == {"of the Q-Former, which reads the question in BERT's words and has no branch here"}
    assert set(report["went"]) | set(left) == set(state)
    graft = json.loads((tmp_path / "donor" / "graft.json").read_text())
    assert graft["config"] == {
        "stacks": {"encoder": 2, "decoder": 2}, "width": 20, "bottleneck": 4, "adapters": 2, "adapter_norm": "none",
        "adapter_scale": "learned", "hint": True, "task": "image", "activation": "gelu",
    }  # fmt: skip
    assert (graft["kind"], graft["host"]["model_type"], graft["host"]["layers"]) == ("lion", "t5", 2)
    assert graft["host"]["embedding"] is not None
    projector = json.loads((tmp_path / "donor" / "projector.json").read_text())
    assert projector["config"] == {
        "layers": [38, 28, 18], "width": 32, "heads": 4, "intermediate": 24, "inner": 40, "hidden_size": 20,
    }  # fmt: skip
    found = load_file(tmp_path / "donor" / "graft.safetensors")
    official_key = "t5_model.decoder.block.1.layer.2.adapter.adapters.1.up_proj.bias"
    assert torch.equal(found["decoder.1.adapters.1.up_proj.bias"], state[official_key])
    assert torch.equal(found["soft_prompt_hint"], state["soft_prompt_hint"])
    eyes = load_file(tmp_path / "donor" / "projector.safetensors")
    assert len(found) + len(eyes) + len(left) == len(state)
    assert all(torch.equal(eyes[name], state[name]) for name in eyes)


def test_the_table_says_what_went_where(tmp_path: Path) -> None:
    ran = run(tmp_path, official(), *FOUR)
    assert ran.code == 0, ran
    assert "left out" in ran.out and "BERT" in ran.out


@pytest.mark.parametrize("changes", [{"adapters": False}, {"vision": False}])
def test_one_part_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    save_t5(tmp_path / "t5")
    ran = run(tmp_path, official(**changes), *(FOUR if "adapters" in changes else ()), "--host", tmp_path / "t5")
    assert (ran.code, ran.err) == (0, ""), ran
    files = {file.name.split(".")[0] for file in (tmp_path / "donor").iterdir()}
    assert files == ({"projector"} if "adapters" in changes else {"graft"})


def imported(state: dict[str, torch.Tensor], **options: Any) -> Any:
    return sort_keys(state, About(options=options))


def without(*words: str, **changes: Any) -> dict[str, torch.Tensor]:
    return {key: value for key, value in official(**changes).items() if not any(word in key for word in words)}


def test_variants_of_the_adapter() -> None:
    def config(state: dict[str, torch.Tensor], **options: Any) -> dict[str, Any]:
        found = imported(state, heads=4, **options).graft
        assert {n: tuple(t.shape) for n, t in found.tensors.items()} == lion_files.shapes(found.config)
        return found.config

    assert config(without("router_ratio", "adapters.1"))["adapters"] == 1
    assert config(official(adapter_norm="in"), adapter_norm="out")["adapter_norm"] == "out"
    assert config(without(".scale"), adapter_scale=2)["adapter_scale"] == 2.0
    assert config(without("soft_prompt_hint"))["hint"] is False


def test_blocks_of_another_tower() -> None:
    assert imported(official(), heads=4, layers="22, 15,7").projector.config["layers"] == [22, 15, 7]
    assert imported(without("blocks.1"), heads=4, layers="-1,5").projector.config["layers"] == [-1, 5]


@pytest.mark.parametrize(
    ("state", "options", "kind", "told"),
    [
        (official(), {}, None, ""),
        (official(adapter_norm="in"), {}, CheckpointError,
         "its adapters have a norm, and the file does not say where (--set adapter_norm=in, or out)"),
        (official(), {"adapter_norm": "in"}, RecipeError, "--set: adapter_norm is 'in', and the adapters have no norm"),
        (without(".scale"), {}, CheckpointError,
         "its adapters have no learned scale, and the file does not say which they have (--set adapter_scale=1.0)"),
        (without(".scale"), {"adapter_scale": "x"}, RecipeError, "--set: adapter_scale is 'x', not a number"),
        (official(), {"adapter_scale": 1}, RecipeError,
         "--set: adapter_scale is 1, and the adapters have learned theirs"),
        (without("decoder"), {}, CheckpointError, "holds no adapters of the decoder"),
        (without(".adapter."), {}, CheckpointError,
         "holds a hint for tags but no adapters (LION saves both in one file)"),
        (without("encoder.block.0"), {}, CheckpointError,
         "holds no matrix for 'encoder.0.adapters.0.down_proj.weight' of LION"),
        (official(), {"heads": 5}, RecipeError, "--set: heads is 5, and the vision aggregator's width of 32 does not "
         "divide by that (--set heads=NUMBER)"),
        (without("blocks.1"), {}, CheckpointError, "its vision aggregator has 1 block, and the file does not say what "
         "they read (--set layers=38,28,18: who asks, then who answers)"),
        (official(), {"layers": "38,x,18"}, RecipeError, "--set: layers is '38,x,18', and an aggregator of 2 blocks "
         "reads 3 of the tower's (--set layers=38,28,18: who asks, then who answers)"),
        (official(vision=False), {"heads": 4}, RecipeError,
         "--set: heads is about the vision aggregator, and the file holds none"),
    ],
)  # fmt: skip
def test_what_a_file_does_not_tell(state: Any, options: dict[str, Any], kind: Any, told: str) -> None:
    if kind is None:
        assert imported(state, **options).projector.config["heads"] == 16
        return
    with pytest.raises(kind) as caught:
        imported(state, **options)
    assert str(caught.value) == told


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    """Said by the framework, which leaves no output."""
    file = tmp_path / "LION.pth"
    for state, code, told in (
        (without("encoder.block.1.layer.1.adapter.router_ratio2"), 3,
         f"{file}: holds nothing for 'encoder.1.router_ratio2' of lion"),
        (official() | {"t5_model.encoder.block.0.layer.1.adapter.gate": torch.ones(1)}, 3,
         f"{file}: tensor 't5_model.encoder.block.0.layer.1.adapter.gate' is no part of lion as the others make it"),
        (official() | {"ln_adapter.bias": torch.ones(3)}, 3,
         f"{file}: tensor 'ln_adapter.bias' has shape [3], and the others make it [32]"),
        (official() | {"speech.weight": torch.ones(3)}, 3,
         f"{file}: tensor 'speech.weight' has no place in what is imported"),
    ):  # fmt: skip
        ran = run(tmp_path, state, *FOUR)
        assert (ran.code, ran.err.strip()) == (code, f"fuse: {told}"), ran
        assert not (tmp_path / "donor").exists()


def test_a_host_that_it_was_not_cut_from(tmp_path: Path) -> None:
    save_t5(tmp_path / "t5", num_layers=3)
    ran = run(tmp_path, official(), *FOUR, "--host", tmp_path / "t5")
    assert (ran.code, (tmp_path / "donor").exists()) == (3, False)
    assert ran.err.strip().endswith("layers is 3, and the imported file was made for 2"), ran.err
