"""How a native member prepares an image and writes it into a prompt: its own processor does both."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fuse.branches.branch import Prepared
from fuse.branches.native_places import native_places
from fuse.branches.native_table import NATIVE
from fuse.errors import CheckpointError, RecipeError, in_a_line

PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_TEXT_OUTPUTS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


def _why(folder: Path, error: Exception) -> str:
    """What the folder lacks, or else what transformers says."""
    for names in (PROCESSORS, TOKENIZERS):
        if not any((folder / name).exists() for name in names):
            return f"there is no {' or '.join(names)}"
    return in_a_line(error)


class NativeEyes:
    """The member's processor, asked about one image at a time."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        """config: the member's config.json. folder: its processor and tokenizer files.

        Raises CheckpointError where they are missing or do not load.
        """
        from transformers import AutoProcessor

        self.row = NATIVE[config["model_type"]]
        self.config, self.folder = config, folder
        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(f"its processor does not load: {_why(folder, error)}", where=folder) from None
        if not hasattr(self.processor, "image_processor"):
            raise CheckpointError("has no image processor (preprocessor_config.json)", where=folder)
        self.placeholder = config.get("image_token_id", config.get("image_token_index"))
        if self.placeholder is None:
            self.placeholder = getattr(self.processor, "image_token_id", None)

    def prepare(self, image: Image.Image, *, guest: bool = True) -> Prepared:
        """The image as this family prepares and writes it; a guest also brings the markers of its chat template."""
        text = {"add_special_tokens": False}
        written = [getattr(self.processor, self.row.written)]
        try:
            out = self.processor(images=[image], text=written, return_tensors="pt", **text)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            raise self._refusal(image, str(error).strip().splitlines()[0] if str(error) else "it fails") from None
        ids = out["input_ids"][0].tolist()
        inputs = {k: v for k, v in out.items() if k not in _TEXT_OUTPUTS and isinstance(v, torch.Tensor)}
        layout = self._layout(ids, guest)
        visual = sum(item for item in layout if isinstance(item, int))
        grid = self._grid(inputs, layout, visual)
        if visual == 0 or (grid is not None and grid[0] * grid[1] * grid[2] != visual):
            raise self._refusal(image, "it is too narrow for a visual token")
        if self.row.rows and visual == 1:
            raise self._refusal(image, "its class takes two visual tokens or more")
        tiles = inputs["pixel_values"].shape[0]
        places = native_places(self.config, self.processor.image_processor, layout, grid, tiles, image.size)
        if places is not None and len(places) != visual:
            places = None
        return Prepared(inputs, layout, grid, places=places)

    def _refusal(self, image: Image.Image, why: str) -> RecipeError:
        size = f"{image.width}x{image.height}"
        return RecipeError(
            f"{self.config['model_type']} takes no image of {size} pixels: {why}", hint="crop it or pad it"
        )

    def _layout(self, ids: list[int], guest: bool) -> tuple[int | str, ...]:
        layout: list[int | str] = []
        for token in ids:
            if token == self.placeholder and layout and isinstance(layout[-1], int):
                layout[-1] += 1
            elif token == self.placeholder:
                layout.append(1)
            elif not self.row.bare:
                layout.append(self.processor.tokenizer.convert_ids_to_tokens(token))
        before, behind = self.row.around if guest else ((), ())
        return (*before, *layout, *behind)

    def _grid(
        self, inputs: dict[str, torch.Tensor], layout: tuple[int | str, ...], n: int
    ) -> tuple[int, int, int] | None:
        if self.row.grid:
            vision = self.config.get("vision_config") or {}
            merge = vision.get("spatial_merge_size", 2)
            t, h, w = inputs["image_grid_thw"][0].tolist()
            return (t, h // merge, w // merge)
        if "image_sizes" in inputs and self.row.rows:
            side = self.config["vision_config"].get("patch_size", 14) * self.config.get("spatial_merge_size", 2)
            high, wide = inputs["image_sizes"][0].tolist()
            return (1, high // side, wide // side)
        one_run = sum(isinstance(item, int) for item in layout) == 1
        if self.row.square and one_run and inputs["pixel_values"].shape[0] == 1 and isqrt(n) ** 2 == n:
            return (1, isqrt(n), isqrt(n))
        return None
