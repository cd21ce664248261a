"""Which visual tokens a branch keeps when its budget is smaller than what its encoder gives (`prune`).

Pure functions of tensors; n = tokens of a run, k = tokens kept, D = hidden size of the host. Every rule is our choice
(VisionFuse prunes, arXiv 2412.01289, but does not say how). All are deterministic: ties go to the lower index, and what
is ranked is computed in float64, so that a CPU and a GPU rank the same tokens alike.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from fuse.branches.cells import Grid, bands, centre, run_grids, stretches
from fuse.errors import CheckpointError

CHUNK = 1024  # rows compared at once, so that a similarity table stays small


def keep_tokens(
    prune: str, tokens: Tensor, runs: Sequence[int], shares: Sequence[int], *, attention: Tensor | None = None,
    said: Tensor | None = None, grid: tuple[int, int, int] | None = None, name: str = "",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The tokens of one image that stay, and where they stood.

    tokens: [n, D], the runs of the image's layout one after another. runs, shares: the runs' lengths and what each
    keeps (`budget.share`); selection happens within a run. prune: pool, norm, cls or similarity. attention: [n], for
    cls. said: [m, D], the tokens that earlier branches keep for this image, for similarity. grid: (t, h, w) of all n
    tokens, for pool. Of a branch that gave fewer tokens than its layout holds, runs and shares are `budget.present`'s.
    Returns ([sum(shares), D] in the tokens' dtype, index int64 [sum(shares)], ascending, into the n tokens; for a
    pooled token the centre of its cell). Tokens are returned as they are where all of them fit.

    Raises CheckpointError when cls is asked of a branch (`name`) without class attention, ValueError when the tokens
    are not as many as the runs say.
    """
    if tokens.shape[0] != sum(runs):
        raise ValueError(f"{tokens.shape[0]} tokens for runs of {sum(runs)} in all")
    if tuple(runs) == tuple(shares):
        return tokens, torch.arange(tokens.shape[0], device=tokens.device)
    if prune == "cls" and attention is None:
        raise CheckpointError(
            "prune: cls needs the attention of a class token, which this branch's encoder does not have",
            where=f"branch {name}" if name else "", hint="prune: norm works with every encoder",
        )  # fmt: skip
    kept: list[Tensor] = []
    index: list[Tensor] = []
    start = 0
    for length, keep, run in zip(runs, shares, run_grids(runs, grid), strict=True):
        part = tokens[start : start + length]
        if prune == "pool":
            chosen, places = pool(part, keep, run)
        else:
            places = _places(
                prune, part, keep, attention[start : start + length] if attention is not None else None, said
            )
            chosen = part[places]
        kept.append(chosen)
        index.append(places + start)
        start += length
    return torch.cat(kept), torch.cat(index)


def _places(prune: str, tokens: Tensor, keep: int, attention: Tensor | None, said: Tensor | None) -> Tensor:
    if prune == "norm":
        return top(_wide(tokens).square().sum(-1), keep)
    if prune == "cls" and attention is not None:
        return top(attention, keep)
    if prune == "similarity":
        return least_similar(tokens, tokens[:0] if said is None else said, keep)
    raise ValueError(f"prune {prune!r} is not one of pool, norm, cls, similarity")


def pool(tokens: Tensor, keep: int, grid: Grid | None = None) -> tuple[Tensor, Tensor]:
    """Means over `keep` cells of a run, cut as `fuse.branches.cells` says, and the index of each cell's centre.

    tokens: [n, D], the cells of `grid` (h, w) in raster order, or a line. Means are taken in float32 or wider.
    Returns ([keep, D] in the tokens' dtype, int64 [keep]). pool(tokens, 144, (24, 24)) is a mean over 2 x 2 cells.
    """
    n, dtype = tokens.shape[0], tokens.dtype
    if keep >= n:
        return tokens, torch.arange(n, device=tokens.device)
    if keep == 0:
        return tokens[:0], torch.arange(0, device=tokens.device)
    wide = tokens if dtype == torch.float64 else tokens.float()
    if grid is None:
        places = [centre(stretch) for stretch in stretches(n, keep)]
        return _narrow(wide, keep).to(dtype), torch.tensor(places, device=tokens.device)
    rows_hwd = wide.unflatten(0, grid)
    means: list[Tensor] = []
    places = []
    for rows, columns in bands(keep, grid):
        means.append(_narrow(rows_hwd[rows.start : rows.stop].mean(0), len(columns)))
        places += [centre(rows) * grid[1] + centre(column) for column in columns]
    return torch.cat(means).to(dtype), torch.tensor(places, device=tokens.device)


def _narrow(tokens: Tensor, keep: int) -> Tensor:
    return adaptive_avg_pool1d(tokens.T[None], keep)[0].T


def top(scores: Tensor, keep: int) -> Tensor:
    """The indices of the `keep` largest of [n] scores: int64 [min(keep, n)], ascending; ties to the lower index."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:keep].sort().values


def least_similar(tokens: Tensor, said: Tensor, keep: int) -> Tensor:
    """The indices of the `keep` tokens that say most that is new: int64 [keep], ascending.

    tokens: [n, D]. said: [m, D], what earlier branches say. A token's likeness is the largest cosine between it and any
    row of `said`; the tokens with the least are kept. With nothing said before (m == 0) the tokens are held against
    each other: the longest one first, then always the one whose largest cosine to those chosen is the least (farthest
    point sampling). The cosine with a zero vector is 0. Needs memory for CHUNK x m cosines.
    """
    n, keep = tokens.shape[0], min(keep, tokens.shape[0])
    if said.shape[0] == 0:
        return _spread(tokens, keep)
    other = _directions(said)
    likeness = [(_directions(tokens[i : i + CHUNK]) @ other.T).amax(1) for i in range(0, n, CHUNK)]
    return top(-torch.cat(likeness), keep)


def _spread(tokens: Tensor, keep: int) -> Tensor:
    n, unit = tokens.shape[0], _directions(tokens)
    likeness = -_wide(tokens).square().sum(-1)  # to nothing at all: the longest comes first
    numbers = torch.arange(n, device=tokens.device)
    chosen: list[Tensor] = []
    for step in range(keep):
        first = torch.where(likeness == likeness.amin(), numbers, n).amin().clamp(max=n - 1)
        chosen.append(first)
        cosines = unit @ unit[first]
        likeness = cosines if step == 0 else torch.maximum(likeness, cosines)
        likeness = likeness.scatter(0, first[None], torch.inf)
    return torch.stack(chosen).sort().values if chosen else numbers[:0]


def _directions(tokens: Tensor) -> Tensor:
    wide = torch.nan_to_num(_wide(tokens))
    return wide / wide.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)


def _wide(tokens: Tensor) -> Tensor:
    return tokens.float() if tokens.device.type == "mps" else tokens.double()  # Apple's GPUs have no float64
