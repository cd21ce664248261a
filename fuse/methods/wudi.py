"""The matrix that interferes least with what each member does in its own row space (WUDI, arXiv 2503.08099)."""

from collections.abc import Sequence

from torch import Tensor

from fuse.methods.interference import adam, quadratic
from fuse.methods.matrices import as_matrices, gram, total

RATE = 1e-5


def wudi(tensors: Sequence[Tensor], base: Tensor, *, lambda_: float = 1.0, steps: int = 300) -> Tensor:
    """The base plus the sum of the task matrices, moved `steps` steps of Adam towards less interference.

    The loss is ``sum_k |(M - tau_k) tau_k.T|^2 / |tau_k|^2``, the start ``M = sum_k tau_k``, Adam's rate
    1e-5. Its gradient has a closed form (`interference`), so that a step is one product of matrices. lambda multiplies
    the result, which is as large as the sum.
    tensors, base: one shape, any float dtypes. Tensors of one dimension get the mean of the task vectors, as in the
    official code; `as_matrices` says what is a matrix.
    Returns that shape in float32 (float64 where an input is float64). Memory: the members in float32, eight more such
    tensors, and nine squares of the width. The last bits may depend on the linear algebra library.
    A member equal to the base adds nothing.

    Raises ValueError for unequal shapes, or fewer than 0 steps.
    """
    if steps < 0:
        raise ValueError(f"steps should be at least 0, not {steps}")

    def merged(deltas: Sequence[Tensor]) -> Tensor:
        loss = quadratic((delta, delta, gram(delta)) for delta in deltas)
        return adam(total(deltas), loss, rate=RATE, steps=steps)

    return as_matrices(tensors, base, merged, lambda_)
