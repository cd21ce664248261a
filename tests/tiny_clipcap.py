"""Tiny ClipCaps: checkpoints as the authors save them, and folders made of them through the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fuse.branches import clipcap_mlp_files, clipcap_transformer_files
from tests import tiny_text
from tests.cli import fuse_forked

FILES = {"clipcap_mlp": clipcap_mlp_files, "clipcap_transformer": clipcap_transformer_files}
WIDTH, LENGTH = 8, 5  # numbers of the feature that the CLIP of tests/recipe_members.py gives, tokens of the prefix


def mapper(kind: str, hidden: int, width: int = WIDTH, seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of a mapper, by the authors' names."""
    config: dict[str, Any] = {"width": width, "hidden_size": hidden, "prefix_length": LENGTH}
    mlp = {"hidden": hidden * LENGTH // 2}
    config |= mlp if kind == "clipcap_mlp" else {"clip_length": 4, "layers": 2, "heads": 8, "inner": 2 * hidden}
    generator = torch.Generator().manual_seed(seed)
    return {
        f"clip_project.{name}": torch.randn(shape, generator=generator) * 0.2
        for name, shape in FILES[kind].shapes(config).items()
    }


def official(kind: str = "clipcap_mlp", width: int = WIDTH, seed: int = 0, **gpt: Any) -> dict[str, torch.Tensor]:
    """What `ClipCaptionModel.state_dict()` holds: the mapper, and a GPT-2 with the masks of old releases."""
    model = tiny_text.build("gpt2", **gpt)
    found = {f"gpt.{name}": tensor for name, tensor in model.state_dict().items()}
    for i in range(model.config.n_layer):
        found[f"gpt.transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8).tril().to(torch.uint8)
        found[f"gpt.transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return mapper(kind, model.config.n_embd, width, seed) | found


def saved(file: Path, state: Mapping[str, torch.Tensor]) -> Path:
    """The file that the authors' train.py writes: the bare state dict."""
    torch.save(dict(state), file)
    return file


def of_host(file: Path, host: Mapping[str, Any]) -> None:
    """A checkpoint whose GPT-2 has the sizes of this config.json."""
    sizes = {key: host[key] for key in ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")}
    saved(file, official(**sizes))


def donor(folder: Path, host: Mapping[str, Any], kind: str = "clipcap_mlp", seed: int = 0) -> None:
    """A projector folder for a GPT-2 with this config.json, by `fuse import` of a file that holds the mapper alone."""
    file = saved(folder.with_suffix(".pt"), mapper(kind, host["n_embd"], seed=seed))
    ran = fuse_forked("import", "clipcap", file, folder, "--set", f"prefix_length={LENGTH}")
    assert (ran.code, ran.err) == (0, ""), ran
