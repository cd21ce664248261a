import pytest
import torch

from fuse.methods.wudi import wudi


def interference(tensors, base, merged):
    taus = [(tensor - base).double() for tensor in tensors]
    away = (merged - base).double()
    return sum(((away - tau) @ tau.T).square().sum() / tau.square().sum() for tau in taus)


def official(tensors, base, steps):
    """Adam over the loss as written, by automatic differentiation."""
    taus = [(tensor - base).double() for tensor in tensors]
    merged = sum(taus).requires_grad_()
    walk = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(steps):
        walk.zero_grad()
        loss = sum(((merged - tau) @ tau.T).square().sum() / tau.square().sum() for tau in taus)
        loss.backward()
        walk.step()
    return base.double() + merged.detach()


@pytest.mark.parametrize("shape", [(12, 15), (15, 12)])
@pytest.mark.parametrize("steps", [1, 300])
def test_oracle(draw, close, shape, steps):
    base, *tensors = draw(1, 4, shape)
    close(wudi(tensors, base, steps=steps), official(tensors, base, steps).numpy())


def test_each_step_interferes_less(draw):
    base, *tensors = draw(2, 3)
    losses = [interference(tensors, base, wudi(tensors, base, steps=steps)) for steps in (0, 100, 200, 300)]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[3]


def test_no_steps_is_the_sum(draw, close):
    base, a, b = draw(3, 3)
    close(wudi([a, b], base, steps=0), (a.double() + b.double() - base.double()).numpy())


def test_one_member_is_the_member(draw, close):
    base, one = draw(4, 2)
    close(wudi([one], base), one.double().numpy())


def test_wrong_steps(draw):
    with pytest.raises(ValueError, match=r"^steps should be at least 0, not -1$"):
        wudi(draw(5, 2), draw(5, 1)[0], steps=-1)
