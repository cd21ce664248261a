"""Tiny donors of visual memories, for tests of recipes and documents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import tiny_grafts


def memory(folder: Path, host: Mapping[str, Any]) -> Path:
    """A memory that adds to the MLP. host: the text config that it fits."""
    return tiny_grafts.donor(folder, "mks2", host)


def mixture(folder: Path, host: Mapping[str, Any]) -> Path:
    """A memory with a trained router and low-rank changes of both experts."""
    lora = {"memory": 2, "mlp": 2, "alpha": 2, "mlp_size": host["intermediate_size"], "mlp_gated": True}
    return tiny_grafts.donor(folder, "mks2", host, router="softmax", place="instead", lora=lora)
