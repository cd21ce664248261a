"""LLaVA-1.5 and LLaVA-NeXT as their original code saves them: a tower, an MLP, and anyres views merged into tokens.

Facts: haotian-liu/LLaVA (llava/model/llava_arch.py, llava/model/multimodal_projector/builder.py, llava/mm_utils.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from fuse.branches.anyres import Size, best_resolution, unpadded
from fuse.branches.branch import Embed, Inputs, Prepared, Seen
from fuse.branches.class_token import sight_has_class_token
from fuse.branches.clip_tower import build_tower, look, no_class_attention
from fuse.branches.llava_config import WHERE, Sight, llava_tokens, sight_of
from fuse.branches.places import Boxes
from fuse.branches.view_places import cell_boxes, cut_boxes, view_box
from fuse.branches.views import lens_of
from fuse.errors import CheckpointError


class LlavaEyes:
    """inputs: `pixel_values` [views, 3, s, s], the whole image first and then its cuts by rows; `image_size` (w, h)."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.sight = sight_of(config)
        self.lens = lens_of(self.sight, folder)

    def prepare(self, image: Image.Image) -> Prepared:
        sight, lens = self.sight, self.lens
        if sight.aspect == "anyres":
            views = lens.cut(image, best_resolution(image.size, sight.pinpoints))
        else:
            views = [lens.view(lens.squared(image) if sight.aspect == "pad" else image)]
        inputs = {"pixel_values": torch.stack(views), "image_size": torch.tensor(image.size)}
        layout = sight.written(llava_tokens(sight, image.size))
        return Prepared(inputs, layout, grid_of(sight), places=self._places(image.size))

    def _places(self, size: Size) -> Boxes:
        sight, lens = self.sight, self.lens
        if sight.aspect != "anyres":
            box = view_box(lens, size, pad=sight.aspect == "pad")
            return cell_boxes([box], sight.side, with_class=sight.with_class)[0]
        views = cut_boxes(lens, size, best_resolution(size, sight.pinpoints))
        cells = torch.from_numpy(cell_boxes(views, sight.side, with_class=sight.with_class))
        return merged(cells, sight, size, torch.zeros(4) if sight.has_newline else None).numpy()


def grid_of(sight: Sight) -> tuple[int, int, int] | None:
    """The grid of the tokens where they are the patches of one view."""
    return None if sight.aspect == "anyres" or sight.with_class else (1, sight.side, sight.side)


class Projector(nn.Module):
    """`mlpNx_gelu`: N linear layers with exact GELU between them. [..., in] to [..., out]."""

    def __init__(self, width: int, hidden_size: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        for number in range(1, layers + 1):
            setattr(self, f"linear_{number}", nn.Linear(width if number == 1 else hidden_size, hidden_size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for number in range(1, self.layers + 1):
            features = getattr(self, f"linear_{number}")(functional.gelu(features) if number > 1 else features)
        return features


def build_projector(sight: Sight) -> nn.Module:
    """The projector that mm_projector_type names; CheckpointError for another kind than a linear layer or an MLP."""
    if sight.projector == "linear":
        return nn.Linear(sight.width, sight.hidden_size)
    if found := re.fullmatch(r"mlp([123])x_gelu", sight.projector):
        return Projector(sight.width, sight.hidden_size, int(found[1]))
    raise CheckpointError(
        f"mm_projector_type is {sight.projector!r}; fuse knows linear and mlp1x_gelu to mlp3x_gelu", where=WHERE
    )


def merged(views: torch.Tensor, sight: Sight, size: Size, newline: torch.Tensor | None) -> torch.Tensor:
    """The tokens [n, D] of one image from those of its views [V, N, D], the whole image first.

    flat: view after view. spatial: the cuts as one map by rows. spatial_unpad: that map without its padding, `newline`
    [D] behind each row, or behind the only view.
    """
    if sight.merge == "flat":
        return views.flatten(0, 1)
    if len(views) == 1:
        return views[0] if newline is None else torch.cat([views[0], newline[None].to(views)])
    columns, rows = (edge // sight.image_size for edge in best_resolution(size, sight.pinpoints))
    side = sight.side
    cells = views[1:].reshape(rows, columns, side, side, -1).transpose(1, 2).reshape(rows * side, columns * side, -1)
    if newline is not None:
        kept = cells[unpadded(rows * side, columns * side, size)]
        cells = torch.cat([kept, newline.to(kept).expand(len(kept), 1, -1)], dim=1)
    return torch.cat([views[0], cells.flatten(0, 1)])


class LlavaBranch(nn.Module):
    """Tower, projector and, with `unpad`, `image_newline`. Inputs as LlavaEyes names them."""

    _no_split_modules = ("LlavaBranch",)  # device_map keeps it on one device

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.sight = sight_of(config)
        self.vision_tower = build_tower(config)
        self.multi_modal_projector = build_projector(self.sight)
        if self.sight.has_newline:
            self.image_newline = nn.Parameter(torch.zeros(self.sight.hidden_size))

    def forward(self, inputs: Inputs, *, text: list[torch.Tensor], embed: Embed, attention: bool = False) -> list[Seen]:
        if attention and not sight_has_class_token(self.sight):
            raise no_class_attention()
        counts = [len(views) for views in inputs["pixel_values"]]
        features, scores = look(self.vision_tower, torch.cat(inputs["pixel_values"]), self.sight, attention)
        sizes = [tuple(size.tolist()) for size in inputs["image_size"]]
        tokens = self.tokens(features.split(counts), sizes)
        if scores is None:
            return [Seen(found) for found in tokens]
        ranks = [
            self._merge(score[..., None], size)[:, 0] for score, size in zip(scores.split(counts), sizes, strict=True)
        ]
        return [Seen(found, rank) for found, rank in zip(tokens, ranks, strict=True)]

    def tokens(self, features: Any, sizes: list[Size]) -> list[torch.Tensor]:
        """From the tower's features [V, N, width] of each image to its tokens [n, hidden_size]."""
        counts = [len(views) for views in features]
        projected = self.multi_modal_projector(torch.cat(list(features))).split(counts)
        return [self._merge(views, size) for views, size in zip(projected, sizes, strict=True)]

    def _merge(self, views: torch.Tensor, size: Size) -> torch.Tensor:
        if self.sight.aspect != "anyres":
            return views[0]
        return merged(views, self.sight, size, getattr(self, "image_newline", None))
