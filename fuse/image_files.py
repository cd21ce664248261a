"""What a native member's small files say about its images, and what an image becomes in the prompt."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import CheckpointError

EDGE, PIXELS = 10_000, 100_000_000
SIZES = ("size", "crop_size", "max_image_size")
# least and most of the whole numbers that processors state
COUNTS = {
    "patch_size": (1, 65_535), "merge_size": (1, 65_535), "temporal_patch_size": (1, 65_535),
    "spatial_merge_size": (1, 65_535), "downsample_factor": (1, 65_535), "img_size": (1, EDGE),
    "max_patches": (1, 65_535), "min_patches": (1, 65_535), "num_additional_image_tokens": (0, 65_535),
    "num_image_tokens": (0, 65_535), "image_seq_length": (0, 65_535), "image_seq_len": (0, 65_535),
    "min_pixels": (1, PIXELS), "max_pixels": (1, PIXELS),
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """One image in the prompt. runs: lengths of the runs of visual tokens, in order. markers: tokens besides them."""

    runs: tuple[int, ...]
    markers: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.runs)


class Sizes:
    """What the files of a native member say about its images: config, processor and image processor."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.config, self.folder = config, folder
        self.vision: Mapping[str, Any] = config.get("vision_config") or {}
        self.processor = _read(folder / "processor_config.json")
        inner = self.processor.get("image_processor")
        check_numbers(self.processor, folder / "processor_config.json")
        own = _read(folder / "preprocessor_config.json")
        check_numbers(own, folder / "preprocessor_config.json")
        self.image = {**own, **(inner if isinstance(inner, dict) else {})}

    def check_edge(self) -> None:
        """A CLIP tower takes pictures of one size only: CheckpointError where the processor makes others."""
        edge, taken = self.edge(), self.vision.get("image_size")
        if self.vision.get("model_type") == "clip_vision_model" and isinstance(taken, int) and edge != taken:
            told = f"the processor makes images of {edge}x{edge} pixels, and vision_config.image_size is {taken}"
            raise CheckpointError(told, where=self.folder)

    def edge(self) -> int:
        """The edge of a square view; what the tower takes where no file says."""
        cropped = self.image.get("do_center_crop", True) is not False
        for given in (self.image.get("crop_size") if cropped else None, self.image.get("size")):
            if isinstance(given, int):
                return given
            if isinstance(given, Mapping) and ("height" in given or "shortest_edge" in given):
                return int(given.get("shortest_edge") or min(given["height"], given["width"]))
        return side_of(self.vision.get("image_size", 336))

    def patch(self) -> int:
        return side_of(self.processor.get("patch_size") or self.vision.get("patch_size", 14))

    def number(self, *places: tuple[Mapping[str, Any], str], default: int) -> int:
        """The first whole number found."""
        found = (place.get(key) for place, key in places)
        return next((value for value in found if type(value) is int), default)


def check_numbers(settings: Mapping[str, Any], where: object) -> None:
    """The numbers that a processor's file states, and those of the image processor inside it.

    Raises CheckpointError for one that is no number of its kind, or that would take a library hours or all memory: our
    choice is a picture of at most 10,000 pixels an edge.
    """
    inner = settings.get("image_processor")
    for table in (settings, inner if isinstance(inner, Mapping) else {}):
        for key, (least, most) in COUNTS.items():
            _check_count(key, table.get(key), least, most, where)
        for key in SIZES:
            _check_size(key, table.get(key), where)
        for key in ("image_mean", "image_std"):
            value = table.get(key)
            given = value if isinstance(value, list) else [value]
            if value is not None and not (len(given) in (1, 3, 4) and all(_is_share(one) for one in given)):
                told = f"{key} is {reprlib.repr(value)}, not three numbers"
                raise CheckpointError(told, where=where)
            if key == "image_std" and 0 in given:
                raise CheckpointError("image_std holds 0, by which pixels cannot be divided", where=where)


def _check_count(key: str, value: Any, least: int, most: int, where: object) -> None:
    for one in value.values() if isinstance(value, Mapping) else (value,):
        if one is not None and (type(one) is not int or not least <= one <= most):
            told = f"{key} is {reprlib.repr(value)}, not a whole number from {least} to {most:,}"
            raise CheckpointError(told, where=where)


def _check_size(key: str, value: Any, where: object) -> None:
    """One edge, a pair of them, or a table; `longest_edge` beside a shortest one may be a number of pixels."""
    if not isinstance(value, Mapping):
        return _check_count(key, value, 1, EDGE, where) if not isinstance(value, list) else None
    pixels = "longest_edge" in value and "shortest_edge" in value
    for name, edge in value.items():
        _check_count(f"{key}.{name}", edge, 1, PIXELS if pixels or name.endswith("pixels") else EDGE, where)
    return None


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _read(file: Path) -> dict[str, Any]:
    return strict_json.read_object(file) if file.is_file() else {}


def side_of(value: Any) -> int:
    """An edge given as one number, a pair or a table."""
    if isinstance(value, Mapping):
        value = value.get("height")
    return int(value[0] if isinstance(value, list | tuple) else value)
