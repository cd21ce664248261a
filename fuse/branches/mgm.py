"""MGM (Mini-Gemini, arXiv 2403.18814): CLIP's patches look for detail in a high-resolution ConvNeXt map of the image.

Facts: dvlab-research/MGM, mgm/model/mgm_arch.py (encode_images, unified_resampler) and mgm/eval/model_vqa_loader.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from fuse.branches.branch import Embed, Inputs, Prepared, Seen
from fuse.branches.clip_tower import build_tower, look
from fuse.branches.convnext import ConvNext, shape_of
from fuse.branches.llava_config import WHERE, sight_of
from fuse.branches.llava_original import build_projector, grid_of
from fuse.branches.mgm_config import fine_of, mgm_tokens
from fuse.branches.places import grid_boxes
from fuse.branches.view_places import cell_boxes, view_box
from fuse.branches.views import lens_of
from fuse.errors import CheckpointError


class MgmEyes:
    """inputs: `pixel_values_aux` [1, 3, S, S]; `pixel_values` [views, 3, s, s], made from it: the views by rows, and
    last the whole picture where the config wants it."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.sight = sight_of(config)
        self.fine = fine_of(config, self.sight)
        edge = self.fine.image_size
        self.lens = replace(lens_of(self.sight, folder), edge=edge, crop=edge, square=False)

    def prepare(self, image: Image.Image) -> Prepared:
        sight, fine = self.sight, self.fine
        picture = self.lens.view(self.lens.squared(image) if sight.aspect == "pad" else image)[None]
        side, grid = sight.image_size, fine.grid
        whole_view = shrunk(picture, side * grid)
        views = whole_view.reshape(3, grid, side, grid, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        if fine.overall:
            views = torch.cat([views, shrunk(whole_view, side)])
        tokens = mgm_tokens(sight, fine)
        inputs = {"pixel_values": views, "pixel_values_aux": picture}
        box = view_box(self.lens, image.size, pad=sight.aspect == "pad")
        boxes = [(a, b, c, d) for a, b, c, d in grid_boxes(grid, grid, box).tolist()]
        places = cell_boxes([box, *boxes] if fine.overall else boxes, sight.side).reshape(-1, 4)
        return Prepared(inputs, sight.written(tokens), grid_of(sight) if grid == 1 else None, places=places)


def shrunk(picture: torch.Tensor, edge: int) -> torch.Tensor:
    return functional.interpolate(picture, size=(edge, edge), mode="bilinear", align_corners=False)


class MgmBranch(nn.Module):
    """Both towers, the three projections of patch info mining, and LLaVA's projector. Inputs as MgmEyes names them."""

    _no_split_modules = ("MgmBranch",)  # device_map keeps it on one device

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.sight = sight_of(config)
        self.fine = fine_of(config, self.sight)
        width, fine_width = self.sight.width, sum(shape_of(config)[1])
        stated = config.get("mm_hidden_size_aux")
        if stated is not None and stated != fine_width:
            raise CheckpointError(
                f"mm_hidden_size_aux is {stated!r}, but the auxiliary tower is {fine_width} wide", where=WHERE
            )
        self.vision_tower = build_tower(config)
        self.vision_tower_aux = ConvNext(config)
        self.vlm_uni_query_projector = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.vlm_uni_aux_projector = nn.Sequential(nn.LayerNorm(fine_width), nn.Linear(fine_width, width))
        self.vlm_uni_val_projector = nn.Sequential(nn.LayerNorm(fine_width), nn.Linear(fine_width, width))
        self.multi_modal_projector = build_projector(self.sight)

    def forward(self, inputs: Inputs, *, text: list[torch.Tensor], embed: Embed, attention: bool = False) -> list[Seen]:
        views = inputs["pixel_values"]
        features, scores = look(self.vision_tower, torch.cat(views), self.sight, attention)
        counts = [len(v) for v in views]
        ranks = [None] * len(views) if scores is None else [self._order(s).flatten() for s in scores.split(counts)]
        seen = []
        for own, picture, rank in zip(features.split(counts), inputs["pixel_values_aux"], ranks, strict=True):
            seen.append(Seen(self.tokens(own, self.vision_tower_aux(picture)), rank))
        return seen

    def tokens(self, features: torch.Tensor, details: torch.Tensor) -> torch.Tensor:
        """The tokens [n, hidden_size] of one image: each patch plus what it mined, projected; the whole picture first.

        features: [views, N, D], as the views lie in the inputs. details: the auxiliary map [1, DA, H, W].
        """
        grid = self.fine.grid
        fine_width, edge = details.shape[1], details.shape[-1] // grid
        cuts = details.reshape(fine_width, grid, edge, grid, edge).permute(1, 3, 0, 2, 4).flatten(0, 1)
        if self.fine.overall:
            small = functional.interpolate(details.float(), scale_factor=1 / grid, mode="bilinear", align_corners=False)
            cuts = torch.cat([cuts, small.to(details.dtype)])
        found = torch.cat(
            [own + self.mine(own, cut) for own, cut in zip(features[:, None], cuts[:, None], strict=True)]
        )
        return self.multi_modal_projector(self._order(found).flatten(0, 1))

    def mine(self, features: torch.Tensor, details: torch.Tensor) -> torch.Tensor:
        """Patch info mining: each patch attends to the cells of the map that lie under it.

        features: [B, N, D], N a square. details: [B, DA, H, W], H == W a multiple of the patches along an edge.
        Returns [B, N, D].
        """
        batch, patches, width = features.shape
        side = round(patches**0.5)
        cell = details.shape[-1] // side
        cells = details.reshape(batch, -1, side, cell, side, cell).permute(0, 2, 4, 3, 5, 1)
        cells = cells.reshape(batch, patches, cell**2, -1)
        query = self.vlm_uni_query_projector(features)[:, :, None]
        key, value = self.vlm_uni_aux_projector(cells), self.vlm_uni_val_projector(cells)
        scores = (query @ (key.transpose(-1, -2) / width**0.5)).nan_to_num()
        return (scores.softmax(-1) @ value)[:, :, 0]

    def _order(self, views: torch.Tensor) -> torch.Tensor:
        """The views in the order of the tokens: the whole picture, which is the last view, comes first."""
        return torch.cat([views[-1:], views[:-1]]) if self.fine.overall else views
