"""Shared by the tests of the merge methods: inputs, a float64 view of them, and the golden files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

GOLDENS = Path(__file__).parent.parent / "goldens"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def draw() -> Callable[..., list[Tensor]]:
    """``draw(seed, count, shape, dtype)``: a base and count - 1 tensors near it."""

    def draw(seed: int, count: int, shape: tuple[int, ...] = (7, 9), dtype=torch.float32) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(shape, generator=generator)
        near = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count - 1)]
        return [tensor.to(dtype) for tensor in [base, *near]]

    return draw


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """``close(result, oracle)``: float32 of the right shape, within a few roundings of the float64 oracle."""

    def close(result: Tensor, oracle: np.ndarray, atol: float = 2e-6) -> None:
        assert result.shape == oracle.shape
        np.testing.assert_allclose(result.double().numpy(), oracle, rtol=2e-6, atol=atol)

    return close


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict[str, Tensor], dict]]:
    """``golden(name)``: the tensors and the description of one golden file."""

    def golden(name: str) -> tuple[dict[str, Tensor], dict]:
        text = (GOLDENS / f"{name}.json").read_text(encoding="utf-8")
        return load_file(GOLDENS / f"{name}.safetensors"), json.loads(text)

    return golden
