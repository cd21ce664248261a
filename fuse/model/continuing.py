"""Going on from a cache: what the prompt behind it was, kept with the cache itself.

A caller who continues a prompt by hand, or gives its cache to another `generate`, knows its words and its mask; it does
not know how far its positions ran ahead of its tokens (M-RoPE hosts), or how far behind them (a branch that shares
another's positions), nor which placeholders stayed empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fuse.branches.native_table import MROPE_HOSTS
from fuse.model.positions import ONE_INDEXED_HOSTS, largest

_NAME = "_fuse_prompt"


@dataclass(frozen=True)
class Behind:
    """The prompt behind a cache.

    ahead: [B, 1] how far its positions ran ahead of its tokens, None where they count them. mask: [B, L], None for all
    ones. states: by graft, what it keeps of the prompt.
    """

    ahead: torch.Tensor | None
    mask: torch.Tensor | None
    states: Mapping[str, dict[str, torch.Tensor]] = field(default_factory=dict)


def remember(
    cache: Any, host_type: str, position_ids: torch.Tensor | None, mask: torch.Tensor | None,
    states: Mapping[str, dict[str, torch.Tensor]],
) -> None:  # fmt: skip
    """Keep with the cache what its prompt was. position_ids: [B, L], [4, B, L] of an M-RoPE host, None for counted."""
    if cache is None:
        return
    ahead = None
    if position_ids is not None:
        last = largest(position_ids) + (host_type not in ONE_INDEXED_HOSTS)
        ahead = last - (position_ids.shape[-1] if mask is None else mask.sum(-1, keepdim=True))
    setattr(cache, _NAME, Behind(ahead, mask, states))


def states_behind(cache: Any) -> Mapping[str, dict[str, torch.Tensor]]:
    """What grafts keep of the prompt behind a cache."""
    behind: Behind | None = getattr(cache, _NAME, None)
    return behind.states if behind is not None else {}


def whole_mask(cache: Any, mask: torch.Tensor | None) -> torch.Tensor | None:
    """The caller's mask [B, L + n] without the placeholders of the prompt that stayed empty."""
    behind: Behind | None = getattr(cache, _NAME, None)
    if mask is None or behind is None or behind.mask is None:
        return mask
    known = behind.mask.to(mask.device).repeat_interleave(mask.shape[0] // behind.mask.shape[0], 0)
    length = known.shape[1]
    return torch.cat([mask[:, :length] * known, mask[:, length:]], 1)


def next_positions(
    cache: Any, host_type: str, rows: int, new: int, mask: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """Positions of `new` tokens behind a cache: [B, new], or [4, B, new] for an M-RoPE host. mask: [B, L + new]."""
    if mask is not None:
        counted = mask.long().cumsum(-1)[:, -new:] - 1
    else:
        counted = (torch.arange(new, device=device) + cache.get_seq_length()).expand(rows, -1)
    behind: Behind | None = getattr(cache, _NAME, None)
    at = counted
    if behind is not None and behind.ahead is not None:
        at = counted + behind.ahead.to(counted.device).repeat_interleave(rows // len(behind.ahead), 0)
    if host_type in MROPE_HOSTS:
        return torch.cat([counted[None], at.expand(3, -1, -1)])
    return at + 1 if host_type in ONE_INDEXED_HOSTS else at
