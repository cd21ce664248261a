"""What a native member's small files say about its images, and what an image becomes in the prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json


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
        self.config = config
        self.vision: Mapping[str, Any] = config.get("vision_config") or {}
        self.processor = _read(folder / "processor_config.json")
        inner = self.processor.get("image_processor")
        self.image = {**_read(folder / "preprocessor_config.json"), **(inner if isinstance(inner, dict) else {})}

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


def _read(file: Path) -> dict[str, Any]:
    return strict_json.read_object(file) if file.is_file() else {}


def side_of(value: Any) -> int:
    """An edge given as one number, a pair or a table."""
    if isinstance(value, Mapping):
        value = value.get("height")
    return int(value[0] if isinstance(value, list | tuple) else value)
