"""ConvNeXt (arXiv 2201.03545) as MGM uses OpenCLIP's: stem and four stages, whose maps are put on top of each other.

Parameter names are timm's (`stem`, `stages`) under MGM's `vision_stem` and `vision_stages`; what MGM throws away (norm,
head, text tower) is not here. Facts: dvlab-research/MGM, mgm/model/multimodal_encoder/openclip_encoder.py.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn import functional

from fuse.branches.llava_config import WHERE, tower_config
from fuse.branches.mgm_config import STEM
from fuse.errors import CheckpointError


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, H, W]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """[..., C] to [..., C] through 4C channels and exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(cells)))


class Block(nn.Module):
    """x + gamma * mlp(norm(depthwise 7x7(x))) on a map [B, C, H, W]."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        found = self.mlp(self.norm(self.conv_dw(cells).permute(0, 2, 3, 1))) * self.gamma
        return cells + found.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Half the edge (but for the first stage), then `depth` blocks."""

    def __init__(self, before: int | None, width: int, depth: int, eps: float) -> None:
        super().__init__()
        halving = [ChannelNorm(before, eps), nn.Conv2d(before, width, 2, stride=2)] if before else []
        self.downsample = nn.Sequential(*halving)
        self.blocks = nn.Sequential(*(Block(width, eps) for _ in range(depth)))

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(cells))


class ConvNext(nn.Module):
    """[B, 3, H, W] to [B, sum(dims), H/4, W/4]: later maps are enlarged to the first, bilinearly in float32."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        depths, dims, eps = shape_of(config)
        self.vision_stem = nn.Sequential(nn.Conv2d(3, dims[0], STEM, stride=STEM), ChannelNorm(dims[0], eps))
        before = [None, *dims[:-1]]
        self.vision_stages = nn.Sequential(
            *(Stage(b, width, depth, eps) for b, width, depth in zip(before, dims, depths, strict=True))
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells, maps = self.vision_stem(images), []
        for stage in self.vision_stages:
            cells = stage(cells)
            maps.append(cells)
        size = maps[0].shape[-2:]
        rest = [functional.interpolate(m.float(), size=size, mode="bilinear", align_corners=False) for m in maps[1:]]
        return torch.cat([maps[0], *(m.to(maps[0].dtype) for m in rest)], dim=1)


def shape_of(config: Mapping[str, Any]) -> tuple[list[int], list[int], float]:
    """Blocks and channels of each stage, and the norms' epsilon, from `towers.vision_tower_aux`."""
    tower = tower_config(config, "vision_tower_aux")
    depths, dims, eps = tower.get("depths"), tower.get("dims"), tower.get("norm_eps", 1e-6)
    if tower.get("model_type") != "convnext" or not _counts(depths) or not _counts(dims) or len(depths) != len(dims):
        raise CheckpointError("towers.vision_tower_aux is not a convnext with as many depths as dims", where=WHERE)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(f"towers.vision_tower_aux.norm_eps is {eps!r}, not a small number", where=WHERE)
    return list(depths), list(dims), eps


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and 0 < len(value) <= 8 and all(type(n) is int and 0 < n <= 1 << 16 for n in value)
