"""Tiny donors of LION for tests of recipes and documents: adapters with a vision aggregator for a CLIP of 12 numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fuse.branches import lion_aggregator_files, lmeye_blip2_projector_files
from tests import tiny_grafts, tiny_lmeye
from tests.cli import fuse_forked
from tests.test_lion_import import official, saved

TOWER = 12  # numbers of a token of the CLIP of tests/recipe_members.py
LAYERS = [2, 1, 0]
AGGREGATOR = {"layers": LAYERS, "width": TOWER, "heads": 4, "intermediate": 24, "inner": 40}
QFORMER = {
    "vision": TOWER, "vision_eps": 1e-6, "width": 6, "queries": 4, "layers": 2, "heads": 2, "intermediate": 10,
    "every": 2, "activation": "gelu", "eps": 1e-12,
}  # fmt: skip
FILES = {"lion_aggregator": lion_aggregator_files, "lmeye_blip2": lmeye_blip2_projector_files}


def checkpoint(file: Path, host: Mapping[str, Any]) -> Path:
    """What the authors would save for a T5 with this config."""
    state = official(host["d_model"], host["num_layers"], host["num_decoder_layers"], TOWER)
    return saved(file, state)


def of_checkpoint(folder: Path, host: Mapping[str, Any]) -> None:
    """What `fuse import lion` makes of a checkpoint for a T5 with this config."""
    file = checkpoint(folder.parent / f"{folder.name}.pth", host)
    ran = fuse_forked(
        "import", "lion", file, folder, "--set", "heads=4", "--set", f"layers={','.join(map(str, LAYERS))}"
    )
    assert (ran.code, ran.err) == (0, ""), ran


def of_decoder(folder: Path, host: Mapping[str, Any]) -> None:
    """Adapters and an aggregator that somebody trained beside a decoder with this text config."""
    tiny_grafts.donor(folder, "lion", host)
    projector(folder, "lion_aggregator", {**AGGREGATOR, "hidden_size": host["hidden_size"]}, host)


def with_qformer(folder: Path, host: Mapping[str, Any]) -> None:
    """LMEye's second generation for a T5 with this config: its network, and BLIP-2's Q-Former."""
    config = {**tiny_lmeye.SECOND, "hidden_size": host["d_model"]}
    tiny_grafts.write(folder, "lmeye_blip2", config, tiny_grafts.host_record(tiny_grafts.basis_of(host)))
    projector(folder, "lmeye_blip2", {**QFORMER, "hidden_size": host["d_model"]}, host)


def projector(folder: Path, kind: str, config: dict[str, Any], host: Mapping[str, Any]) -> None:
    """A projector folder, drawn from a seed. host: the text config of the language model that it was made for."""
    folder.mkdir(exist_ok=True)
    tensors = tiny_lmeye.seeded(dict(FILES[kind].shapes(config)), 4, 0.2)
    save_file(tensors, folder / "projector.safetensors")
    record = tiny_grafts.host_record(tiny_grafts.basis_of(host))
    told = {"format": 1, "kind": kind, "config": config, "host": record, "source": {}}
    (folder / "projector.json").write_text(json.dumps(told))
