"""From a picture to square, normalised views, as CLIP's image processor and the original LLaVA code do it with PIL.

All resizing is PIL's bicubic on 8-bit RGB unless preprocessor_config.json names another filter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fuse import strict_json
from fuse.branches.anyres import Size, fitted
from fuse.branches.llava_config import PLAIN_TOWER, Sight
from fuse.errors import CheckpointError

FILE = "preprocessor_config.json"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # what SigLIP subtracts and divides by
LONGEST = 8192  # a longer picture is scaled down before it is padded to a square (our choice: a square of it must fit)
STRETCH = 64  # of a longer strip only the middle is resized: the centre crop keeps less (our choice, as above)


@dataclass(frozen=True)
class Lens:
    """How one view is made: scaled so that its short edge is `edge` (or to a square), cut to `crop`, normalised."""

    edge: int
    crop: int
    square: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    def view(self, image: Image.Image) -> torch.Tensor:
        """The middle of an RGB picture, [3, crop, crop] in float32."""
        short = min(image.size)
        if max(image.size) > STRETCH * short and not self.square:
            image = _middle(image, (min(image.width, STRETCH * short), min(image.height, STRETCH * short)))
        if self.square:
            size = (self.edge, self.edge)
        else:
            size = tuple(self.edge if n == short else int(self.edge * n / short) for n in image.size)
        scaled = image.resize((size[0], size[1]), Image.Resampling(self.resample))
        pixels = np.asarray(_middle(scaled, (self.crop, self.crop)), dtype=np.float32) / np.float32(255)
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def squared(self, image: Image.Image) -> Image.Image:
        """The picture in the middle of a square of the mean colour."""
        longest = max(image.size)
        if longest > LONGEST:
            image = image.resize((max(image.width * LONGEST // longest, 1), max(image.height * LONGEST // longest, 1)))
            longest = max(image.size)
        if image.width == image.height:
            return image
        out = Image.new("RGB", (longest, longest), tuple(int(255 * c) for c in self.mean))
        out.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        return out

    def cut(self, image: Image.Image, target: Size) -> list[torch.Tensor]:
        """The whole picture squeezed into one view, then the views of the picture scaled into `target` on black."""
        scaled = image.resize(fitted(image.size, target))
        canvas = Image.new("RGB", target)
        canvas.paste(scaled, ((target[0] - scaled.width) // 2, (target[1] - scaled.height) // 2))
        tiles = [
            canvas.crop((x, y, x + self.crop, y + self.crop))
            for y in range(0, target[1], self.crop)
            for x in range(0, target[0], self.crop)
        ]
        return [self.view(part) for part in (image.resize((self.edge, self.edge)), *tiles)]


def lens_of(sight: Sight, folder: Path) -> Lens:
    """The tower's own preprocessing, from the processor file in the folder; without one, what its kind is trained with.

    Raises CheckpointError for values that make no view of the tower's size.
    """
    path = folder / FILE
    found = strict_json.read_object(path, max_bytes=1 << 20) if path.is_file() else {}
    plain = sight.tower == PLAIN_TOWER
    size = found.get("size", sight.image_size)
    crop = found.get("crop_size", size) if found.get("do_center_crop", not plain) else size
    lens = Lens(
        edge=_edge(size, path),
        crop=_edge(crop, path),
        square=(isinstance(size, dict) and "shortest_edge" not in size) or (plain and not found),
        mean=_colour(found, "image_mean", HALF if plain else CLIP_MEAN, path),
        std=_colour(found, "image_std", HALF if plain else CLIP_STD, path),
        resample=found.get("resample", Image.Resampling.BICUBIC),
    )
    if lens.crop != sight.image_size:
        raise CheckpointError(f"makes views of {lens.crop} pixels, but the tower sees {sight.image_size}", where=path)
    if lens.resample not in list(Image.Resampling):
        raise CheckpointError(f"resample is {lens.resample!r}, not a filter of PIL", where=path)
    return lens


def _middle(image: Image.Image, size: Size) -> Image.Image:
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _edge(size: Any, path: Path) -> int:
    """One edge of a size: a number, {"shortest_edge": n} or {"height": n, "width": n}."""
    edge = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    width = size.get("width", edge) if isinstance(size, dict) else size
    if type(edge) is not int or not 0 < edge <= LONGEST or width != edge:
        raise CheckpointError(f"size {size!r} is not one of square views", where=path)
    return edge


def _colour(found: dict[str, Any], key: str, default: tuple[float, ...], path: Path) -> tuple[float, ...]:
    value = found.get(key, default)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(c, int | float) for c in value):
        raise CheckpointError(f"{key} is {value!r}, not three numbers", where=path)
    if key == "image_std" and not all(value):
        raise CheckpointError("image_std holds 0", where=path)
    return tuple(float(c) for c in value)
