"""LoRA baked into a weight, exactly: `W + scaling * up @ down` (arXiv 2106.09685, section 4.1)."""

from collections.abc import Mapping, Sequence

import torch

from fuse.grafts.lora_files import Fold


def fold(weight: torch.Tensor, changes: Sequence[Fold], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight with the changes added, in its own dtype.

    weight: [out, in], or [in, out] where the changes are `transposed`. tensors: the graft's, by name. The sum is made
    in float32 (float64 where the weight is), and rounded once.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    total = weight.to(exact, copy=True)
    for change in changes:
        up, down = tensors[change.up].to(exact), tensors[change.down].to(exact)
        added = change.scaling * (up[slice(*change.up_rows)] @ down)
        if change.transposed:
            total[:, slice(*change.rows)] += added.T
        else:
            total[slice(*change.rows)] += added
    return total.to(weight.dtype)
