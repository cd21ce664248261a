"""SliME (arXiv 2406.08487): the whole image in full, a separator, and of the local views what the text asks for.

Facts: yfzhang114/SliME, llava/model/llava_arch.py (encode_images), llava/model/multimodal_projector/builder.py
(GatedBlock) and llava/mm_utils.py.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fuse.branches.anyres import Size, sliced_resolution
from fuse.branches.branch import Embed, Inputs, Prepared, Seen
from fuse.branches.clip_tower import build_tower, look, no_class_attention
from fuse.branches.llava_config import WHERE, Sight
from fuse.branches.llava_original import Projector, build_projector, grid_of
from fuse.branches.places import Boxes
from fuse.branches.slime_config import Choice, slime_sight, slime_tokens
from fuse.branches.slime_sampler import Resampler, Sampler
from fuse.branches.view_places import cell_boxes, cut_boxes, view_box
from fuse.branches.views import lens_of
from fuse.errors import CheckpointError

GATED = 576  # the gate works on views of exactly so many patches


class SlimeEyes:
    """inputs: `pixel_values` [views, 3, s, s], the whole image first and then its slices by rows; `slices` (rows,
    columns) of them, (0, 0) where there are none. How many tokens there will be hangs on the text: `variable`."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.sight, self.choice = slime_sight(config)
        self.lens = lens_of(self.sight, folder)

    def prepare(self, image: Image.Image) -> Prepared:
        sight, lens = self.sight, self.lens
        sliced = sight.aspect == "anyres"
        columns = rows = 0
        if sliced:
            target = sliced_resolution(image.size, sight.image_size)
            views = lens.cut(image, target)
            columns, rows = (edge // sight.image_size for edge in target)
        else:
            views = [lens.view(lens.squared(image) if sight.aspect == "pad" else image)]
        inputs = {"pixel_values": torch.stack(views), "slices": torch.tensor([rows, columns])}
        layout = sight.written(slime_tokens(sight, self.choice, image.size))
        variable = sliced and self.choice.parts
        return Prepared(inputs, layout, grid_of(sight), variable, self._places(image.size, rows, columns))

    def _places(self, size: Size, rows: int, columns: int) -> Boxes:
        """The boxes of all tokens that may be chosen: a query of a local view stands for its cell of that view."""
        sight, choice, lens = self.sight, self.choice, self.lens
        if not rows:
            return cell_boxes([view_box(lens, size, pad=sight.aspect == "pad")], sight.side)[0]
        views = cut_boxes(lens, size, (columns * sight.image_size, rows * sight.image_size))
        found = [cell_boxes(views[:1], sight.side)[0], np.zeros((int(choice.parts), 4))] if choice.whole else []
        if choice.parts:
            parts = torch.from_numpy(cell_boxes(views[1:], choice.grid))
            found.append(_in_order(parts, (rows, columns), sight, choice).numpy())
        return np.concatenate(found)


class GatedProjector(Projector):
    """LLaVA's MLP over the patches and over their resampled selves, mixed by a gate for each patch.

    Views of another number of patches than 576 take the MLP alone. only: >= 0 uses the one or the other alone
    (mm_learnable_gated). w_noise is the gate's noise in training.
    """

    def __init__(self, width: int, hidden_size: int, only: int) -> None:
        super().__init__(width, hidden_size, 2)
        self.only = only
        self.attn = Resampler(isqrt(GATED), width)
        self.w_gate, self.w_noise = (nn.Parameter(torch.zeros(width, 2)) for _ in range(2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, L, width] to [B, L, hidden_size]."""
        plain = super().forward(features)
        if features.shape[1] != GATED or self.only == 0:
            return plain
        mixed = super().forward(self.attn(features))
        if self.only == 1:
            return mixed
        gates = (features @ self.w_gate.to(features.dtype)).softmax(-1)
        gates = gates / (gates.sum(-1, keepdim=True) + 1e-6)
        return plain * gates[..., :1] + mixed * gates[..., 1:]


class SlimeBranch(nn.Module):
    """Tower, projector and sampler; inputs as SlimeEyes names them. Reads the prompt's words and the host's table."""

    _no_split_modules = ("SlimeBranch",)  # device_map keeps it on one device

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.sight, self.choice = slime_sight(config)
        sight, choice = self.sight, self.choice
        self.vision_tower = build_tower(config)
        self.multi_modal_projector = _projector(config, sight)
        self.sampler = Sampler(
            choice.grid, sight.width, sight.hidden_size,
            learned=choice.learned, p=choice.p, temperature=choice.temperature,
        )  # fmt: skip

    def forward(self, inputs: Inputs, *, text: list[torch.Tensor], embed: Embed, attention: bool = False) -> list[Seen]:
        if attention:
            raise no_class_attention()
        views = inputs["pixel_values"]
        features, _ = look(self.vision_tower, torch.cat(views), self.sight)
        seen = []
        for own, grid, ids in zip(features.split([len(v) for v in views]), inputs["slices"], text, strict=True):
            rows, columns = grid.tolist()
            seen.append(self.look(own, (rows, columns), ids, embed))
        return seen

    def tokens(self, features: torch.Tensor, grid: tuple[int, int], ids: torch.Tensor, embed: Embed) -> torch.Tensor:
        return self.look(features, grid, ids, embed).tokens

    def look(self, features: torch.Tensor, grid: tuple[int, int], ids: torch.Tensor, embed: Embed) -> Seen:
        """The tokens [n, hidden_size] of one image: whole, separator, chosen parts.

        features: [1 + rows*columns, N, width]. grid: (rows, columns), (0, 0) for the whole alone. ids: the prompt's.
        """
        choice = self.choice
        found = self.multi_modal_projector(features[:1])[0] if choice.whole or len(features) == 1 else None
        if found is not None and (len(features) == 1 or not choice.parts):
            return Seen(found)
        parts = self.multi_modal_projector(self.sampler.post_qformer(features[1:]))
        parts = _in_order(parts, grid, self.sight, choice)
        chosen = self.sampler.choose(parts, embed(ids).to(parts))
        if found is None:
            return Seen(parts[chosen], chosen=chosen)
        separator = embed(torch.tensor([choice.separator], device=ids.device)).to(found)
        first = torch.arange(len(found) + 1, device=chosen.device)
        return Seen(torch.cat([found, separator, parts[chosen]]), chosen=torch.cat([first, len(first) + chosen]))


def _in_order(parts: torch.Tensor, grid: tuple[int, int], sight: Sight, choice: Choice) -> torch.Tensor:
    """The tokens [n, D] of the local views [rows * columns, choice.grid**2, D]: view after view, or as one map."""
    if sight.merge == "spatial":
        parts = parts.reshape(*grid, choice.grid, choice.grid, -1).transpose(1, 2)
    return parts.flatten(0, -2)


def _projector(config: Mapping[str, Any], sight: Sight) -> nn.Module:
    if sight.projector != "gated":
        return build_projector(sight)
    only = config.get("mm_learnable_gated", -1)
    if type(only) is not int or not -1 <= only <= 1:
        raise CheckpointError(f"mm_learnable_gated is {only!r}; fuse knows -1, 0, 1", where=WHERE)
    return GatedProjector(sight.width, sight.hidden_size, only)
