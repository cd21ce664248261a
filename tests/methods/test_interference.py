import numpy as np
import pytest
import torch

from fuse.methods import interference
from fuse.methods.interference import Quadratic, adam, descend, momentum, quadratic
from fuse.methods.matrices import gram


@pytest.fixture
def tasks(draw):
    base, *tensors = draw(1, 4, (7, 9), torch.float64)
    return [tensor - base for tensor in tensors]


def loss_of(tasks, matrix):
    return sum(((matrix - tau) @ tau.T).square().sum() / tau.square().sum() for tau in tasks)


def wudi_loss(tasks):
    return quadratic((tau, tau, gram(tau)) for tau in tasks)


def test_the_gradient(tasks):
    matrix = torch.ones(7, 9, dtype=torch.float64, requires_grad=True)
    loss_of(tasks, matrix).backward()
    loss = wudi_loss(tasks)
    torch.testing.assert_close(2 * (matrix.detach() @ loss.c - loss.d), matrix.grad)


def walked(tasks, start, optimiser, steps):
    """What torch's own optimiser does, by automatic differentiation."""
    matrix = start.clone().requires_grad_()
    walk = optimiser([matrix])
    for _ in range(steps):
        walk.zero_grad()
        loss_of(tasks, matrix).backward()
        walk.step()
    return matrix.detach()


@pytest.mark.parametrize("steps", [0, 1, 2, 40])
def test_gradient_descent_at_once(tasks, steps):
    start = sum(tasks) / 3
    found = descend(start, wudi_loss(tasks), lambda values: momentum(values, rate=0.05, steps=steps))
    wanted = walked(tasks, start, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), steps)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 2, 40])
@pytest.mark.parametrize("rows", [2, 512])
def test_adam(tasks, monkeypatch, rows, steps):
    monkeypatch.setattr(interference, "ROWS", rows)
    start = sum(tasks)
    found = adam(start, wudi_loss(tasks), rate=1e-3, steps=steps)
    wanted = walked(tasks, start, lambda p: torch.optim.Adam(p, lr=1e-3), steps)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_way_to_the_minimum(tasks):
    """With fewer columns than the tasks have rows in all, the minimum is the one solution of M C = D."""
    loss = wudi_loss(tasks)
    found = descend(sum(tasks), loss, lambda values: 1 / values)
    np.testing.assert_allclose(found, loss.d.numpy() @ np.linalg.inv(loss.c.numpy()), atol=1e-9)


def test_tasks_of_zeros_are_left_out(tasks):
    nothing = torch.zeros_like(tasks[0])
    with_it, without = wudi_loss([nothing, *tasks]), wudi_loss(tasks)
    assert torch.equal(with_it.c, without.c) and torch.equal(with_it.d, without.d)
    empty = wudi_loss([nothing])
    assert isinstance(empty, Quadratic) and not empty.c.any() and not empty.d.any()
