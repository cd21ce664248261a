"""`--device` of the verbs that run models: names that are none, and what is not here, before anything is done."""

from pathlib import Path

import pytest
import torch

from fuse import devices
from fuse.ask import load
from fuse.errors import MachineError, RecipeError
from tests.cli import fuse_here

VERBS = {
    "ask": ("ask", "folder", "hi"),
    "eval": ("eval", "folder", "--data", "data.jsonl"),
    "search": ("search", "recipe.yaml", "--data", "data.jsonl", "--out", "found"),
    "attention": ("inspect", "attention", "folder", "--image", "a.png", "--question", "what ?"),
    "encoders": ("inspect", "encoders", "a", "b", "--images", "images"),
    "pairs": ("inspect", "pairs", "a", "b", "--base", "base"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["cud", "meta", "cuda:", "cuda:-1", "gpu", ""])
def test_another_name(verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = fuse_here(*VERBS[verb], "--device", name)
    told = f"fuse: device {name!r}: a model runs on cpu, cuda, cuda:N, mps or auto\n"
    assert (ran.code, ran.out, ran.err) == (2, "", told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "name", "told"),
    [
        (0, "cuda", "torch finds no GPU here"), (0, "cuda:0", "torch finds no GPU here"),
        (1, "cuda:1", "torch finds 1 GPU here"), (2, "cuda:77", "torch finds 2 GPUs here"),
        (0, "mps", "torch finds no such device here"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_here(count: int, name: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    ran = fuse_here("ask", "folder", "hi", "--device", name)
    assert (ran.code, ran.out, ran.err) == (4, "", f"fuse: device {name!r}: {told} (cpu works everywhere)\n")


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "mps", "auto"):
        devices.check_device(name)
    assert devices.gpus("cuda") == [0, 1] and devices.gpus("cuda:1") == [1]
    assert [devices.first(name) for name in ("cpu", "cuda:1", "auto")] == ["cpu", "cuda:1", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.first("auto") == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.first("auto") == "cpu"


def test_python_is_told_before_a_folder_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="device 'meta': a model runs on"):
        load(tmp_path / "nowhere", device="meta")
    with pytest.raises(MachineError, match="device 'cuda': torch finds no GPU here"):
        load(tmp_path / "nowhere", device="cuda")
