"""How long visual tokens are: the L2 norms that `norm` of a branch sets. Our choice; the paper scales nothing."""

import torch

from fuse.branches.branch import Embed

ROWS = 4096  # rows of the embedding that are looked at together


def mean_norm(tokens: torch.Tensor) -> torch.Tensor:
    """The mean L2 norm of [n, D] tokens, a float32 (or wider) scalar; 0 where there are none."""
    return _wide(tokens).norm(dim=-1).sum() / max(1, tokens.shape[0])


def scaled(tokens: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Tokens [n, D] times the one number that makes their mean L2 norm `norm`, in their own dtype.

    Computed in float32 or wider and rounded once. Where the tokens or `norm` are zero, the number is 1.
    """
    own, norm = mean_norm(tokens), norm.to(tokens.device)
    factor = torch.where((own > 0) & (norm > 0), norm / own, torch.ones_like(own))
    return (_wide(tokens) * factor).to(tokens.dtype)


@torch.no_grad()
def embedding_norm(embed: Embed, rows: int, device: torch.device) -> torch.Tensor:
    """The mean L2 norm of what the language model reads for a word: over all rows of its embedding that are not zero.

    Rows pass through the embedding itself, so that a host that scales its words (Gemma) is asked for the scaled ones.
    Zero rows are those of placeholders and padding. Computed whenever it is asked for, so that it belongs to the
    weights as they are.
    """
    total, count = torch.zeros((), device=device), torch.zeros((), device=device)
    for start in range(0, rows, ROWS):
        norms = _wide(embed(torch.arange(start, min(start + ROWS, rows), device=device))).norm(dim=-1).to(device)
        total, count = total + norms.sum(), count + (norms > 0).sum()
    return total / count.clamp(min=1)


def _wide(tokens: torch.Tensor) -> torch.Tensor:
    return tokens if tokens.dtype == torch.float64 else tokens.float()
