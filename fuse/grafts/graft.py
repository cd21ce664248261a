"""What a graft is to the fused model: a module that attaches to slots of the host, and may look at a prompt first.

The host's weights and names stay as they are. A graft whose scale is 0 is not attached, its `read` is not called and
its placeholders are not written, so the host computes exactly what it computes without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fuse.branches.branch import Embed
from fuse.grafts.slots import Slots

State = dict[str, torch.Tensor]  # by name, tensors whose first dimension is the rows (prompts) of a batch


@dataclass(frozen=True)
class Sight:
    """What one branch saw of one image: the prompt (row) that it belongs to, and the encoder's own features.

    features: whatever the branch's projector was given, such as [1, c] pooled or [n, c] of all patches.
    tokens: [n, D], what the branch put into the prompt. columns: [n] where.
    """

    row: int
    features: torch.Tensor
    tokens: torch.Tensor
    columns: torch.Tensor


@dataclass
class Reading:
    """A prompt with all visual tokens in place, before the language model reads it.

    input_ids, attention_mask, numbers: [B, L]; numbers is 0 at words, and at visual tokens the number of their image
    and branch, from 1. embeds: [B, L, D]; `read` may put another tensor here. sights: by branch, one for each image.
    ids: the graft's own placeholders, name -> token id. options: what the caller asked of this graft (`task`, ...).
    embed: token ids -> rows of the host's embedding. run: (embeds, attention_mask) -> the last hidden state [B, L, D]
    of one pass without a cache, after the final norm, with the grafts attached; an encoder-decoder's encoder alone.
    image: the branch that the recipe says it looks at.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    numbers: torch.Tensor
    embeds: torch.Tensor
    sights: Mapping[str, list[Sight]]
    embed: Embed
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ids: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None


class Graft(nn.Module):
    """One graft. Its state dict holds what `grafts.<name>.` holds on disk.

    scale: how much of it is heard, never 0 here. state: of the prompts that are being read or continued; the model sets
    it before every pass. `rows_of` gives a tensor of it for the rows of a pass, which beams may have multiplied.
    begins: whether a pass reads prompts from their first token (words that were generated may stand behind them) or
    goes on from a cache with what follows; the model sets it before every pass.
    """

    ASKED: Mapping[str, Callable[[Any], bool]] = {}

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: the graft's JSON in config.json: the donor's `config` with what the recipe asked for."""
        super().__init__()
        self.config = dict(config)
        self.scale = 1.0
        self.state: State = {}
        self.begins = True

    @property
    def looks(self) -> bool:
        """Whether it looks at prompts at all, so that it cannot do without what `read` returns."""
        return type(self).read is not Graft.read

    def attach(self, slots: Mapping[str, Slots]) -> None:
        """Give functions to slots. slots: by stack: `language`, or `encoder` and `decoder` of an encoder-decoder; and
        `tower` where the recipe names a branch whose vision tower is meant.
        """
        raise NotImplementedError

    def read(self, reading: Reading) -> State:
        """Look at a prompt, and change its embeddings where the graft does so; what is returned stays with the cache.

        Called once for a prompt, not for the words that follow it.
        """
        del reading
        return {}

    def rows_of(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A tensor of the state, its rows repeated for the rows of `like` (beams, several sequences)."""
        held = self.state[name]
        return held.repeat_interleave(like.shape[0] // held.shape[0], 0).to(like.device)
