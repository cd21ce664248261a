"""Copies of a member whose language model was moved further from the base than training moved it."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

PREFIX = "language_model."


def stretched(member: Path, base: Path, times: float, out: Path) -> Path:
    """A copy at `out` with ``base + times * (member - base)`` for language weights; its eyes stay as they are."""
    if not out.is_dir():
        ground, weights = load_file(base / "model.safetensors"), load_file(member / "model.safetensors")
        for name, before in ground.items():
            after = weights[PREFIX + name]
            weights[PREFIX + name] = (before.float() + times * (after.float() - before.float())).to(after.dtype)
        shutil.copytree(member, out)
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out
