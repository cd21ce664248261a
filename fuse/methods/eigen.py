"""Eigendecompositions that a signal does not wait for."""

from threading import Event, Thread

import torch
from torch import Tensor

from fuse import interruption

SMALL = 1024  # rows; up to here it takes a fraction of a second
PATIENCE = 0.1  # seconds between two looks


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` of a symmetric matrix: the eigenvalues, smallest first, and the eigenvectors as columns.

    A large one takes from seconds to minutes in a library that hears no signal. So a thread of its own computes it,
    and a signal (`fuse.interruption`) ends the wait; the thread ends with the process, or with its work.
    """
    if len(matrix) <= SMALL:
        return tuple(torch.linalg.eigh(matrix))
    done, found = Event(), list[tuple[Tensor, Tensor] | BaseException]()

    def work() -> None:
        try:
            found.append(tuple(torch.linalg.eigh(matrix)))
        except BaseException as error:
            found.append(error)
        done.set()

    Thread(target=work, name="fuse-eigh", daemon=True).start()
    while not done.wait(PATIENCE):
        interruption.check()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
