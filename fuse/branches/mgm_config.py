"""What MGM's config adds to LLaVA's, checked: a second, finer picture, and a grid of views. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse.branches.llava_config import WHERE, Sight, whole
from fuse.errors import CheckpointError

STEM = 4  # pixels along one edge of a cell of the auxiliary tower's first map
DEFAULTS = {"image_size_aux": 320, "image_grid": 1}  # where the config leaves them out (initialize_uni_modules)


@dataclass(frozen=True)
class Fine:
    """image_size: edge of the picture that the auxiliary tower sees. grid: CLIP's views along one edge of the picture.
    overall: CLIP also sees the whole picture in one view, the last."""

    image_size: int
    grid: int
    overall: bool

    @property
    def views(self) -> int:
        return self.grid**2 + self.overall


def fine_of(config: Mapping[str, Any], sight: Sight) -> Fine:
    """MGM's own keys, checked against its towers."""
    stated = {key: config[key] for key in ("image_size_aux", "image_grid") if config.get(key) is not None}
    size, grid = (whole({**DEFAULTS, **stated}, key) for key in DEFAULTS)
    if sight.with_class or sight.aspect == "anyres":
        key = "mm_vision_select_feature" if sight.with_class else "image_aspect_ratio"
        raise CheckpointError(f"{key} is {config[key]!r}, which MGM does not have", where=WHERE)
    if (size // STEM) % (grid * sight.side):
        raise CheckpointError(
            f"image_size_aux {size} makes a map of {size // STEM} cells an edge, which {grid} x {sight.side} patches"
            " do not divide",
            where=WHERE,
        )
    return Fine(size, grid, bool(config.get("image_global")) and grid > 1)


def mgm_tokens(sight: Sight, fine: Fine) -> int:
    """How many tokens any image becomes."""
    return fine.views * sight.view_tokens
