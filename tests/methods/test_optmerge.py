import numpy as np
import pytest
import torch

from fuse.methods.optmerge import VARIANTS, optmerge

STARTS = {"lora": "mean", "full": "sum", "modality": "mean"}
WALKS = {
    "lora": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9),
    "full": lambda p: torch.optim.Adam(p, lr=1e-5),
    "modality": lambda p: torch.optim.SGD(p, lr=5e-2, momentum=0.9),
}


def cut(matrix, rank):
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def oracle(variant, tensors, base, steps):
    """The loss of the variant as it is told, walked down by torch's own optimiser, in float64."""
    taus = [(tensor - base).double() for tensor in tensors]
    rank, middle = max(1, min(base.shape) // len(taus)), sum(taus) / len(taus)
    rows = [tau if variant == "modality" else cut(tau, rank) for tau in taus]
    targets = {
        "lora": rows,
        "full": [middle + cut(tau - middle, rank) for tau in taus],
        "modality": [cut(tau, max(1, min(base.shape) // 5)) for tau in taus],
    }[variant]
    merged = (sum(taus) if STARTS[variant] == "sum" else middle).clone().requires_grad_()
    walk = WALKS[variant]([merged])
    for _ in range(steps):
        walk.zero_grad()
        each = zip(taus, rows, targets, strict=True)
        sum(((merged - target) @ row.T).square().sum() / tau.square().sum() for tau, row, target in each).backward()
        walk.step()
    return (base.double() + merged.detach()).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(12, 15), (15, 12)])
@pytest.mark.parametrize("steps", [1, 300])
def test_oracle(draw, close, variant, shape, steps):
    base, *tensors = draw(1, 4, shape)
    close(optmerge(tensors, base, variant=variant, steps=steps), oracle(variant, tensors, base, steps))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_steps_is_the_start(draw, close, variant):
    base, a, b = draw(2, 3)
    share = {"mean": 0.5, "sum": 1}[STARTS[variant]]
    wanted = base.double() + share * (a.double() + b.double() - 2 * base.double())
    close(optmerge([a, b], base, variant=variant, steps=0), wanted.numpy())


def test_many_steps_of_one_member_whole_end_at_the_member(draw):
    base, one = draw(3, 2, (4, 6))
    for variant in ("lora", "full"):
        np.testing.assert_allclose(optmerge([one], base, variant=variant).numpy(), one.numpy(), atol=1e-6)


def test_a_member_equal_to_the_base_pulls_nowhere_but_counts(draw, close):
    base, one = draw(4, 2, (6, 8))
    assert optmerge([one, base], base, steps=0).equal(optmerge([base, one], base, steps=0))
    for variant in VARIANTS:
        assert optmerge([one, base], base, variant=variant).isfinite().all()


def test_wrong_arguments(draw):
    base, one = draw(5, 2)
    with pytest.raises(ValueError, match=r"^variant should be lora, full or modality, not 'qwen'$"):
        optmerge([one], base, variant="qwen")
    with pytest.raises(ValueError, match=r"^steps should be at least 0, not -1$"):
        optmerge([one], base, steps=-1)
