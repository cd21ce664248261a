"""How much of a memory each token takes, and what becomes of the MLP then: the soft mixture of multimodal experts.

One formula for all routers, with m the memory's output, y the MLP's, s the graft's scale and g the token's share:

    beside the MLP:     y + s g m
    instead of it:      (1 - s g) y + s g m

`softmax` (arXiv 2311.15759, soft MoMEs): S = softmax(w_s x + b_s), S_1 m + S_2 y. Since S_2 = 1 - S_1 this is the
second line with g = S_1. `additive`: g = 1, beside; the training-free form. `none`: g = 1, instead: the memory without
mixing, as the figure of the paper's first stage draws it; its ablation's other reading, the plain sum, is `additive`.
`token_type`: g = 1 at visual tokens and 0 at words (as CogVLM's experts do, arXiv 2311.03079). `prompts`, `arrow`: a
softmax over rows that no training made (`fuse.grafts.mks2_rows`). Where the last three put the memory is the donor's
`place`, or the recipe's. The scale, which the paper does not have, interpolates between the host and the mixture.
"""

import torch


def share_of(scores: torch.Tensor, router: str, temperature: float) -> torch.Tensor:
    """The memory's share of each token, [..., 1] in the scores' dtype, computed in float32 or wider.

    scores: [..., 2], the router's rows (and bias) applied to what the memory reads; the memory's row is the first.
    `arrow` takes their size alone, since a singular vector has no sign (Arrow, arXiv 2405.11157).
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    wide = wide.abs() if router == "arrow" else wide
    return wide.softmax(-1)[..., :1].to(scores.dtype)


def blended(y: torch.Tensor, m: torch.Tensor, share: torch.Tensor | float, place: str) -> torch.Tensor:
    """y with a share of m, beside it or instead of it. y, m: [..., d]; share: a number, or [..., 1] in their dtype."""
    return torch.lerp(y, m, share) if place == "instead" else y + share * m
