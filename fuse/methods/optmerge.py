"""Low-rank task matrices, merged with little interference (OptMerge, arXiv 2505.19892).

The official code has three variants, which differ in more than the paper tells; all are here, by what they were
written for.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from fuse.methods.interference import Quadratic, adam, descend, momentum, quadratic
from fuse.methods.matrices import as_matrices, gram, mean, total
from fuse.methods.spectrum import spectrum, truncated

VARIANTS = ("lora", "full", "modality")
PARTS = 5


def optmerge(
    tensors: Sequence[Tensor], base: Tensor, *, variant: str = "lora", lambda_: float = 1.0, steps: int = 300
) -> Tensor:
    """The base plus a matrix that does on each member's leading directions what the member's low-rank matrix does.

    The loss is ``sum_k |(M - T_k) A_k.T|^2 / |tau_k|^2`` (see `interference`). With N members and
    ``r = max(1, min(rows, width) // N)``:

    "lora" (LoRA experts; the Qwen2-VL script): T_k is tau_k cut to rank r, A_k its rows; from the mean of the task
    matrices, gradient descent with rate 1e-4 and momentum 0.9.
    "full" (full fine-tunes; the InternVL script): T_k is the mean plus the rest of tau_k cut to rank r, A_k the rows of
    tau_k cut to rank r; from the sum, Adam with rate 1e-5. As large as the sum: lambda is below 1 in practice.
    "modality" (models of different modalities; the ModelCompose script): T_k is tau_k cut to a rank that does not
    depend on N, ``max(1, min(rows, width) // 5)``, A_k the rows of the whole tau_k; from the mean, gradient descent
    with rate 0.05 and momentum 0.9.

    Gradient descent is computed at once, in float64, from one eigendecomposition; Adam takes its `steps`. lambda
    multiplies the result.
    tensors, base: one shape, any float dtypes. Tensors of one dimension get the mean of the task vectors, as in the
    first two scripts (the third drops them); `as_matrices` says what is a matrix.
    Returns that shape in float32 (float64 where an input is float64). Memory: the members in float32, eighteen more
    such tensors, and nine squares of the width. The last bits may depend on the linear algebra library.
    A member equal to the base adds nothing, but counts in N.

    Raises ValueError for unequal shapes, another variant, or fewer than 0 steps.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant should be {', '.join(VARIANTS[:-1])} or {VARIANTS[-1]}, not {variant!r}")
    if steps < 0:
        raise ValueError(f"steps should be at least 0, not {steps}")

    def merged(deltas: Sequence[Tensor]) -> Tensor:
        loss = _LOSSES[variant](deltas)
        if variant == "full":
            return adam(total(deltas), loss, rate=1e-5, steps=steps)
        rate = {"lora": 1e-4, "modality": 0.05}[variant]
        return descend(mean(deltas), loss, partial(momentum, rate=rate, steps=steps))

    return as_matrices(tensors, base, merged, lambda_)


def _lora(deltas: Sequence[Tensor]) -> Quadratic:
    # what tau_k was cut off lies outside the rows A_k: tau_k itself pulls as its cut does
    return quadratic((delta, delta, _leading(delta, _rank(deltas))) for delta in deltas)


def _full(deltas: Sequence[Tensor]) -> Quadratic:
    middle, rank = mean(deltas), _rank(deltas)

    def tasks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for delta in deltas:
            yield delta, truncated(delta - middle, rank).add_(middle), _leading(delta, rank)

    return quadratic(tasks())


def _modality(deltas: Sequence[Tensor]) -> Quadratic:
    rank = max(1, min(deltas[0].shape) // PARTS)
    return quadratic((delta, truncated(delta, rank), gram(delta)) for delta in deltas)


_LOSSES = {"lora": _lora, "full": _full, "modality": _modality}


def _rank(deltas: Sequence[Tensor]) -> int:
    return max(1, min(deltas[0].shape) // len(deltas))


def _leading(delta: Tensor, rank: int) -> Tensor:
    """The products of the rows of a matrix cut to a rank."""
    found = spectrum(delta, rank)
    return (found.right * found.values.square()) @ found.right.T
