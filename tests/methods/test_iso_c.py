import numpy as np
import pytest
import torch

from fuse.methods.iso_c import iso_c


@pytest.mark.parametrize("shape", [(12, 15), (15, 12), (6, 6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_oracle(draw, close, shape, dtype):
    base, *tensors = draw(1, 4, shape, dtype)
    summed = sum(tensor.double().numpy() for tensor in tensors) - 3 * base.double().numpy()
    left, values, right = np.linalg.svd(summed, full_matrices=False)
    close(iso_c(tensors, base, lambda_=0.4), base.double().numpy() + 0.4 * values.mean() * left @ right)


def test_all_directions_are_equally_strong(draw):
    *tensors, base = *draw(2, 3)[1:], torch.zeros(7, 9)
    values = torch.linalg.svdvals(iso_c(tensors, base))
    torch.testing.assert_close(values, values.mean().expand_as(values))


def test_directions_without_a_change_stay_but_count_in_the_mean():
    base, one = torch.eye(4), torch.eye(4)
    one[0, 0], one[1, 1] = 7.0, 3.0  # singular values 6, 2, 0 and 0
    wanted = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0]))
    torch.testing.assert_close(iso_c([one], base), wanted)
