"""Encoder branches: any image encoder of open_clip, timm or transformers, with a given projector, as eyes of a host.

The visual tokens are the encoder's patch tokens, without class and register tokens, in raster order: what open_clip
gives with `output_tokens`, timm from `forward_features` and transformers as `last_hidden_state`, or those of an earlier
`layer` (`fuse.branches.encoder_layers`); a feature map is read row by row. CoCa's attentional pooler is left out: its
queries are no patches (our choice).
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fuse.branches import tower_types
from fuse.branches.branch import Embed, Inputs, Prepared, Seen
from fuse.branches.encoder_attention import class_attention
from fuse.branches.encoder_grid import grid_for
from fuse.branches.encoder_layers import LAST
from fuse.branches.encoder_preprocess import preprocess
from fuse.branches.encoder_towers import build_tower, settle
from fuse.branches.places import grid_boxes
from fuse.errors import CheckpointError

WHERE = "config.json: branches"


class EncoderBranch(nn.Module):
    """`encoder`, the tower up to its patch tokens, and `projector`, linear layers with GELU between them.

    `projector.0` takes [n, tower's width]; the last layer gives [n, host's hidden size].
    """

    _no_split_modules = ("EncoderBranch",)  # device_map: its computed tables follow the image, not single layers

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: the branch's JSON, as `fuse.branches.encoder_files.read_encoder` gives it.

        Raises CheckpointError for a config that makes no tower or no projector.
        """
        super().__init__()
        self.config = dict(config)
        self.encoder, self._fixed = build_tower(config)
        self.layer = config.get("layer", LAST)
        if self.layer != LAST and (type(self.layer) is not int or not -_layers(self.encoder) <= self.layer < 0):
            told = f"layer is {self.layer!r}, which {config.get('architecture')} does not have"
            raise CheckpointError(told, where=WHERE)
        layers: list[nn.Module] = []
        for i, row in enumerate(config.get("projector") or ()):
            if i and config["projector"][i - 1]["out"] != row["in"]:
                raise CheckpointError(f"projector layer {i} does not fit the one before it", where=WHERE)
            layers += [nn.GELU()] * bool(layers) + [nn.Linear(row["in"], row["out"], bias=row["bias"])]
        if not layers:
            raise CheckpointError("an encoder branch has no projector", where=WHERE)
        self.projector = nn.Sequential(*layers)

    def forward(self, inputs: Inputs, *, text: list[torch.Tensor], embed: Embed, attention: bool) -> list[Seen]:
        """Tokens [h * w, D] of every image. inputs: `pixel_values`, [3, H, W] each; equal sizes are encoded together.

        text and embed are not looked at. Raises CheckpointError when attention is asked of an encoder that has no class
        token.
        """
        images = inputs["pixel_values"]
        seen: dict[int, Seen] = {}
        for size in dict.fromkeys(image.shape for image in images):
            members = [i for i, image in enumerate(images) if image.shape == size]
            pixels = torch.stack([images[i] for i in members])
            settle(self._fixed, pixels)
            if attention:
                patches, scores = class_attention(self.config, self.encoder, lambda x=pixels: self.patches(x))
            else:
                patches, scores = self.patches(pixels), [None] * len(members)
            if patches.shape[-1] != self.projector[0].in_features:
                raise CheckpointError(
                    f"the projector takes tokens of {self.projector[0].in_features} numbers but the encoder gives "
                    f"{patches.shape[-1]}",
                    where=WHERE,
                )
            for i, tokens, score in zip(members, self.projector(patches), scores, strict=True):
                seen[i] = Seen(tokens, score)
        return [seen[i] for i in range(len(images))]

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """The encoder's own patch tokens [B, n, width] of images [B, 3, H, W]."""
        features = self._features(pixels)
        if features.ndim == 4:
            return features.flatten(1, 2)
        return features

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, n, width], or [B, h, w, width] where the encoder gives a map."""
        if self.layer != LAST:
            return self._earlier(pixels)
        tower: Any = self.encoder
        if self.config["library"] == "transformers":
            found = tower(pixel_values=pixels).last_hidden_state
            skip = tower_types.prefix_tokens(self.config["tower"])
            return found.permute(0, 2, 3, 1) if found.ndim == 4 else found[:, skip:]
        if hasattr(tower, "forward_features"):  # timm, alone or inside open_clip
            found = tower.forward_features(pixels)
            if not isinstance(found, torch.Tensor) or found.ndim not in (3, 4):
                raise CheckpointError(f"{self.config['architecture']} gives no patch tokens", where=WHERE)
            if found.ndim == 3:
                has_class = int(getattr(tower, "cls_token", None) is not None)
                return found[:, getattr(tower, "num_prefix_tokens", has_class) :]
            last = getattr(tower, "output_fmt", "NCHW") == "NHWC" or found.shape[1] != tower.num_features
            return found if last else found.permute(0, 2, 3, 1)
        if hasattr(tower, "layer4"):
            for stage in (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4):
                pixels = stage(pixels)
            return pixels.permute(0, 2, 3, 1)
        return tower.ln_post(tower.transformer(tower._embeds(pixels)))[:, 1:]

    def _earlier(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same of `layer`, as the encoder's library gives its intermediate features."""
        tower: Any = self.encoder
        if self.config["library"] == "transformers":
            found = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1:][self.layer]
            skip = tower_types.prefix_tokens(self.config["tower"])
            return found.permute(0, 2, 3, 1) if found.ndim == 4 else found[:, skip:]
        found = tower.forward_intermediates(
            pixels, indices=[self.layer], stop_early=True, intermediates_only=True,
            output_fmt="NCHW" if hasattr(tower, "stages") else "NLC",
        )  # fmt: skip
        (found,) = found["image_intermediates"] if isinstance(found, dict) else found
        return found.permute(0, 2, 3, 1) if found.ndim == 4 else found


def _layers(tower: Any) -> int:
    """How many layers a tower has that `layer` may count; 0 where it counts none."""
    if hasattr(tower, "config"):
        return getattr(tower.config, "num_stages", 0) or getattr(tower.config, "num_hidden_layers", 0)
    if not hasattr(tower, "forward_intermediates"):
        return 0
    resblocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    return len(getattr(tower, "blocks", getattr(tower, "stages", resblocks)))


@lru_cache(maxsize=64)
def _grid(config: str, height: int, width: int) -> tuple[int, int, int]:
    """(tokens, h, w) of an image of that size, from the tower itself on meta; h = w = 0 where they are no grid."""
    with torch.device("meta"):
        branch = EncoderBranch(json.loads(config)).eval()
        pixels = torch.empty(1, 3, height, width, dtype=torch.get_default_dtype())
        settle(branch._fixed, pixels)
        with torch.no_grad():
            found = branch._features(pixels).shape
    if len(found) == 4:
        return found[1] * found[2], found[1], found[2]
    rows = round((found[1] * height / width) ** 0.5) or 1  # patches are square
    return (found[1], rows, found[1] // rows) if found[1] % rows == 0 else (found[1], 0, 0)


class EncoderEyes:
    """Prepares an image as the encoder's library does: `pixel_values` [3, H, W].

    Where the branch's JSON does not say how many tokens such an image has, the tower is built on meta to tell.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        """config: the branch's JSON. folder: holds preprocessor_config.json where the encoder is transformers'.

        Raises CheckpointError where how to prepare images is not known.
        """
        self._stated, self._config = config, json.dumps(dict(config), sort_keys=True)
        self._preprocess, self._part = preprocess(config, folder)

    def prepare(self, image: Image.Image) -> Prepared:
        """image: RGB, any size. Every image has the same number of tokens, except where the encoder's own processor
        keeps the image's shape.
        """
        pixels = self._preprocess(image)
        height, width = pixels.shape[-2:]
        if stated := grid_for(self._stated, (height, width)):
            return self._lay(pixels, stated[0] * stated[1], stated, image.size)
        try:
            tokens, rows, columns = _grid(self._config, height, width)
        except (ValueError, RuntimeError, AssertionError) as error:
            told = (str(error).splitlines() or [""])[0][:200]
            raise CheckpointError(f"the encoder takes no images of {height}x{width}: {told}", where=WHERE) from None
        return self._lay(pixels, tokens, (rows, columns) if rows else None, image.size)

    def _lay(self, pixels: torch.Tensor, tokens: int, grid: tuple[int, int] | None, size: tuple[int, int]) -> Prepared:
        part = self._part(size)
        places = grid_boxes(*grid, part) if grid and part else None
        return Prepared({"pixel_values": pixels}, (tokens,), (1, *grid) if grid else None, places=places)
