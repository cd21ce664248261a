"""Tiny LaVINs: checkpoints as the authors save them, and donor folders made of them through the command line."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fuse.grafts import lavin_files
from tests.cli import fuse_forked

TOWER = "backbone.visual.transformer.resblocks."
WIDTH, DEEP = 12, 3  # of the CLIP that stands in for the big one in recipes


def official(
    layers: int = 2, width: int = 16, deep: int = 8, kind: str = "router", scope: str = "attn", seed: int = 0
) -> dict[str, torch.Tensor]:
    """The tensors of a tiny LaVIN under the authors' names. deep: blocks of its CLIP, 0 without adapters there."""
    tower = {"width": WIDTH, "layers": deep, "adapter_dim": 4, "groups": 2, "visual_adapter_type": kind}
    config = {"hidden_size": width, "layers": layers, "adapter_dim": 8, "groups": 2, "adapter_type": scope}
    shapes = lavin_files.shapes({**config, "tower": tower if deep else None})
    proj = {"conv_A.weight": (6, WIDTH), "conv_A.bias": (6,), "conv_B.weight": (width, 6), "conv_B.bias": (width,)}
    shapes |= {f"adapter_proj.{name}": shape for name, shape in proj.items()}
    generator = torch.Generator().manual_seed(seed)
    return {
        (TOWER + name.removeprefix("tower.") if name.startswith("tower.") else name): torch.randn(
            shape, generator=generator
        )
        for name, shape in shapes.items()
    }


def saved(file: Path, state: Mapping[str, torch.Tensor], **options: Any) -> Path:
    """The file that the authors' training writes: wrapped, from several GPUs, with the optimizer and its options."""
    told = {"adapter_type": "attn", "temperature": 10.0, "adapter_scale": 1, "device": torch.device("cpu"), **options}
    whole = {
        "model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 19, "scaler": None,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.009}]},
        "args": argparse.Namespace(**told),
    }  # fmt: skip
    torch.save(whole, file)
    return file


def checkpoint(file: Path, host: Mapping[str, Any], **sizes: Any) -> Path:
    """A checkpoint for a language model, of its text config."""
    given = {"layers": host["num_hidden_layers"], "width": host["hidden_size"], "deep": DEEP, **sizes}
    return saved(file, official(**given))


def donor(folder: Path, host: Mapping[str, Any], **sizes: Any) -> None:
    """What `fuse import` makes of one."""
    told = fuse_forked("import", "lavin", checkpoint(folder.with_suffix(".pth"), host, **sizes), folder)
    assert told.code == 0, told.err
