"""Tiny donors of LION for tests of recipes and documents: adapters with a vision aggregator for a CLIP of 12 numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fuse.branches import lion_aggregator_files
from tests import tiny_grafts
from tests.cli import fuse_here
from tests.test_lion_import import official, saved

TOWER = 12  # numbers of a token of the CLIP of tests/recipe_members.py
LAYERS = [2, 1, 0]
SIZES = {"layers": LAYERS, "width": TOWER, "heads": 4, "intermediate": 24, "inner": 40}


def checkpoint(file: Path, host: Mapping[str, Any]) -> Path:
    """What the authors would save for a T5 with this config."""
    state = official(host["d_model"], host["num_layers"], host["num_decoder_layers"], TOWER)
    return saved(file, state)


def of_checkpoint(folder: Path, host: Mapping[str, Any]) -> None:
    """What `fuse import lion` makes of a checkpoint for a T5 with this config."""
    file = checkpoint(folder.parent / f"{folder.name}.pth", host)
    ran = fuse_here("import", "lion", file, folder, "--set", "heads=4", "--set", f"layers={','.join(map(str, LAYERS))}")
    assert (ran.code, ran.err) == (0, ""), ran


def of_decoder(folder: Path, host: Mapping[str, Any]) -> None:
    """Adapters and an aggregator that somebody trained beside a decoder with this text config."""
    tiny_grafts.donor(folder, "lion", host)
    config = {**SIZES, "hidden_size": host["hidden_size"]}
    generator = torch.Generator().manual_seed(4)
    shapes = lion_aggregator_files.shapes(config)
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    save_file(tensors, folder / "projector.safetensors")
    record = tiny_grafts.host_record(tiny_grafts.basis_of(host))
    told = {"format": 1, "kind": "lion_aggregator", "config": config, "host": record, "source": {}}
    (folder / "projector.json").write_text(json.dumps(told))
