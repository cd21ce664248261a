"""Tiny random donors of every kind of graft, for hosts of tests/tiny_text.py's size."""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fuse import families
from fuse.families import Basis
from fuse.grafts.basis import LAYER_NORMS
from fuse.grafts.hosts import why_no_slots
from fuse.grafts.kinds import files_of

CLIP_TEXT = {"layers": 1, "heads": 2, "intermediate": 16, "activation": "quick_gelu", "eps": 1e-5}


def basis_of(config: Mapping[str, Any]) -> Basis:
    """The numbers of a language model from its config.json."""
    return families.basis_of(config, families.family_of(config, "config.json"), "config.json")


def _mks2(host: Basis) -> dict[str, Any]:
    return {
        "hidden_size": host.hidden_size, "inner_size": 8, "layers": list(range(host.layers)), "activation": "silu",
        "gated": True, "bias": False, "norm": "host", "place": "beside", "router": "additive",
    }  # fmt: skip


def _lion(host: Basis) -> dict[str, Any]:
    depths = {"encoder": host.layers, "decoder": host.sizes["m"]} if host.family == "t5" else {"language": host.layers}
    return {"stacks": depths, "width": host.hidden_size, "bottleneck": 4, "hint": True}


def _lavin(host: Basis) -> dict[str, Any]:
    return {
        "hidden_size": host.hidden_size, "layers": host.layers, "adapter_dim": 4, "groups": 2, "adapter_type": "block",
        "tower": None,
    }  # fmt: skip


def _llama_adapter(host: Basis) -> dict[str, Any]:
    return {
        "hidden_size": host.hidden_size, "depth": host.layers, "heads": host.heads, "rows": 3 * (host.layers - 1),
        "length": 3, "gate": "tanh", "new_gate": False, "linears": {}, "norms": [], "norm_eps": 1e-6, "visual": None,
    }  # fmt: skip


def _lmeye(host: Basis) -> dict[str, Any]:
    return {
        "hidden_size": host.hidden_size, "width": 12, "prompts": 2, "slots": 2, "place": "image", "clip": CLIP_TEXT,
    }  # fmt: skip


def _lora(host: Basis) -> dict[str, Any]:
    wide = host.heads * host.head_dim
    rows = {"rank": 2, "in": wide, "out": host.hidden_size, "scaling": 1.0}
    stack = "encoder" if host.family == "t5" else "language"
    return {"modules": {f"{stack}.{n}.o": rows for n in range(host.layers)}}


CONFIGS: dict[str, Callable[[Basis], dict[str, Any]]] = {
    "lavin": _lavin, "lion": _lion, "llama_adapter": _llama_adapter, "lmeye": _lmeye, "lora": _lora, "mks2": _mks2,
}  # fmt: skip


def tensors(kind: str, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor that the config promises, each drawn from a generator of its own."""
    made = {}
    for name, shape in files_of(kind).shapes(config).items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        made[name] = torch.randn(tuple(shape), generator=generator) * 0.3
    return made


def write(folder: Path, kind: str, config: Mapping[str, Any], host: Mapping[str, Any]) -> Path:
    """A donor folder. host: what it was cut from, as graft.json states it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(kind, config), folder / "graft.safetensors")
    told = {"format": 1, "kind": kind, "config": dict(config), "host": dict(host), "source": {}}
    (folder / "graft.json").write_text(json.dumps(told))
    return folder


def host_record(host: Basis) -> dict[str, Any]:
    """What graft.json says of a host whose embedding is not known."""
    return {
        "model": "", "model_type": host.family, "hidden_size": host.hidden_size, "layers": host.layers,
        "norm": "layer" if host.family in LAYER_NORMS else "rms",
        "norm_eps": host.norm_eps, "embedding": None,
    }  # fmt: skip


def donor(folder: Path, kind: str, host_config: Mapping[str, Any], **changes: Any) -> Path:
    """A donor folder of a kind that fits a host. changes: of its config."""
    host = basis_of(host_config)
    assert not why_no_slots(host_config)
    return write(folder, kind, {**CONFIGS[kind](host), **changes}, host_record(host))
