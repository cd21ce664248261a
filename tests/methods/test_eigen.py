"""fuse.methods.eigen: the decomposition is torch's, on whatever thread; a signal does not wait for it."""

import signal
import threading
import time

import pytest
import torch

from fuse import interruption
from fuse.methods import eigen


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigen, "SMALL", 0)


def symmetric(size: int) -> torch.Tensor:
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return matrix @ matrix.T


@pytest.mark.parametrize("size", [1, 7, 200])
def test_a_thread_of_its_own_changes_no_byte(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    here = eigen.eigh(symmetric(size))
    monkeypatch.setattr(eigen, "SMALL", 0)
    assert all(map(torch.equal, here, eigen.eigh(symmetric(size))))


def test_what_goes_wrong_there_is_raised_here(everything_is_large: None) -> None:
    with pytest.raises(RuntimeError, match="must be batches of square matrices"):
        eigen.eigh(torch.zeros(2, 3, dtype=torch.float64))


def test_a_signal_ends_the_wait(everything_is_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over = threading.Event(), threading.Event()

    def slow(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        begun.set()
        over.wait(60)
        return matrix, matrix

    monkeypatch.setattr(torch.linalg, "eigh", slow)
    monkeypatch.setattr(interruption, "_asked", [])
    threading.Thread(target=lambda: (begun.wait(60), interruption._asked.append(signal.SIGTERM)), daemon=True).start()
    start = time.monotonic()
    with pytest.raises(SystemExit, match="143"):
        eigen.eigh(symmetric(3))
    assert time.monotonic() - start < 30
    over.set()
