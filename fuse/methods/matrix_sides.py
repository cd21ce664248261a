"""What of a tensor is a matrix. No torch here: a plan asks too."""

from collections.abc import Sequence
from math import prod


def sides(shape: Sequence[int]) -> tuple[int, int]:
    """The rows and the width of a tensor's matrix, or of each in a stack of them: see `matrices.as_matrices`.

    shape: of any number of dimensions; those of a vector and of a number are (1, 1), which says that there is none.
    """
    if len(shape) < 2:
        return 1, 1
    return (shape[1], shape[2]) if len(shape) == 3 else (shape[0], prod(shape[1:]))
