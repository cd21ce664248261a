"""Goldens that a method of ours meets by another name, or over more than one tensor."""

import pytest
import torch

from fuse.methods.ties import ties
from fuse.methods.trim import kept_count


@pytest.mark.parametrize("percent", [20, 60])
def test_ties_over_a_whole_model(golden, percent):
    """ModelCompose trims all tensors of a model as one vector, the bias in front of the weight.

    Of d numbers it keeps those from the (d - int(d * K / 100))-th smallest magnitude on: one more than K percent.
    """
    tensors, told = golden(f"merge_mc_ties_K{percent}")
    vectors = [
        torch.cat([tensors[f"input.task_vector_bias_{k}"], tensors[f"input.task_vector_{k}"].flatten()])
        for k in range(3)
    ]
    size = vectors[0].numel()
    keep = int(size * percent / 100) + 1
    assert kept_count(keep / size, size) == keep
    ours = ties(vectors, torch.zeros(size), weights=[1, 1, 1], density=[keep / size] * 3)
    wanted = torch.cat([tensors["output.merged_bias_delta"], tensors["output.merged_delta"].flatten()])
    torch.testing.assert_close(ours, wanted, rtol=0, atol=float(told["tolerance"]))


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_the_largest_magnitudes_scaled_up(golden, rate):
    """Their magnitude pruning is our `ties` of one member, with lambda for what is divided by the density."""
    tensors, told = golden(f"merge_dare_{rate}")
    base = tensors["input.base_weight"]
    density = (base.numel() - int(base.numel() * rate)) / base.numel()
    for k in range(3):
        delta = tensors[f"input.finetuned_weight_{k}"] - base
        ours = ties([delta], torch.zeros_like(base), weights=[1], density=[density], lambda_=1 / (1 - rate))
        torch.testing.assert_close(ours, tensors[f"output.magnitude_{k}"], rtol=0, atol=float(told["tolerance"]))
