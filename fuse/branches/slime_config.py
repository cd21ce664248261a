"""What SliME's config adds to LLaVA's, checked: what of the local views is kept. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from fuse.branches.anyres import Size, sliced_resolution
from fuse.branches.llava_config import WHERE, Sight, one_of, sight_of, whole
from fuse.errors import CheckpointError

KINDS = ("cosine", "qformer")
SEPARATOR = 1919  # the token whose embedding stands between the whole and the parts; the config spells it `seperator`


@dataclass(frozen=True)
class Choice:
    """grid: tokens along an edge of a local view. learned: the router is a module. whole, parts: which are used."""

    grid: int
    learned: bool
    p: float
    temperature: float
    separator: int
    whole: bool
    parts: bool

    def tokens(self, sight: Sight, views: int) -> int:
        """The most tokens that one image becomes."""
        if sight.aspect != "anyres":
            return sight.view_tokens
        return self.whole * sight.view_tokens + (self.whole and self.parts) + self.parts * views * self.grid**2


def slime_sight(config: Mapping[str, Any]) -> tuple[Sight, Choice]:
    """Read and check a config.

    image_grid_pinpoints is not read: SliME's code slices by area (anyres.sliced_resolution).
    """
    size = 1 << 10
    towers = config.get("towers")
    if isinstance(towers, Mapping) and isinstance(towers.get("vision_tower"), Mapping):
        size = towers["vision_tower"].get("image_size", size)
    sight = sight_of({**config, "image_grid_pinpoints": [[size, size]]})
    if sight.has_newline or sight.with_class:
        key = "mm_patch_merge_type" if sight.has_newline else "mm_vision_select_feature"
        raise CheckpointError(f"{key} is {config[key]!r}, which SliME does not have", where=WHERE)
    kind = one_of(config, "mm_resampler_type", KINDS, "")
    if not kind:
        raise CheckpointError("mm_resampler_type is missing; fuse knows cosine, qformer", where=WHERE)
    separator = config.get("seperator", SEPARATOR)
    if type(separator) is not int or separator < 0:
        raise CheckpointError(f"seperator is {separator!r}, not a token's id", where=WHERE)
    return sight, Choice(
        grid=isqrt(whole(config, "mm_resampler_dim")), learned=kind == "qformer", p=_share(config, "mm_resampler_topp"),
        temperature=_share(config, "mm_resampler_temp", most=1e6), separator=separator,
        whole=not config.get("use_local_only") or bool(config.get("use_global_only")),
        parts=not config.get("use_global_only"),
    )  # fmt: skip


def _share(config: Mapping[str, Any], key: str, most: float = 1.0) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        raise CheckpointError(f"{key} is {value!r}, not a number above 0 and up to {most:g}", where=WHERE)
    return float(value)


def slime_tokens(sight: Sight, choice: Choice, size: Size) -> int:
    """The most tokens that an image of (width, height) becomes."""
    columns, rows = (edge // sight.image_size for edge in sliced_resolution(size, sight.image_size))
    return choice.tokens(sight, rows * columns)
