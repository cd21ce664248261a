"""Encoder branches: any image encoder of open_clip, timm or transformers, with a given projector, as eyes of a host.

Linear layers project the encoder's patch tokens, without class and register tokens, in raster order: what open_clip
gives with `output_tokens`, timm from `forward_features` and transformers as `last_hidden_state`, or those of an earlier
`layer` (`fuse.branches.encoder_layers`); a feature map is read row by row. CoCa's attentional pooler is left out: its
queries are no patches (our choice). Projectors of other kinds (`fuse.branches.projector_kinds`) say what they read, and
how many tokens they make of it.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fuse.branches.branch import Embed, Inputs, Prepared, Seen
from fuse.branches.encoder_attention import class_attention
from fuse.branches.encoder_features import WHERE, layers_of, patch_map, read
from fuse.branches.encoder_grid import grid_for
from fuse.branches.encoder_layers import LAST
from fuse.branches.encoder_preprocess import preprocess
from fuse.branches.encoder_reads import Reads
from fuse.branches.encoder_towers import build_tower, settle
from fuse.branches.places import grid_boxes
from fuse.branches.projector_kinds import Described, build_projector, describe
from fuse.errors import CheckpointError


class EncoderBranch(nn.Module):
    """`encoder`, the tower up to what is read of it, and `projector`: linear layers with GELU between them, or a kind.

    Of linear layers, `projector.0` takes [n, tower's width], and the last one gives [n, host's hidden size].
    """

    _no_split_modules = ("EncoderBranch",)  # device_map: its computed tables follow the image, not single layers

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: the branch's JSON, as `fuse.branches.encoder_files.read_encoder` gives it.

        Raises CheckpointError for a config that makes no tower or no projector.
        """
        super().__init__()
        self.config = dict(config)
        kind = described(config)
        self.reads = kind.reads if kind else Reads()
        self.encoder, self._fixed = build_tower(config, _head(kind))
        layer = config.get("layer", LAST)
        if layer != LAST and (type(layer) is not int or not -layers_of(self.encoder) <= layer < 0):
            told = f"layer is {layer!r}, which {config.get('architecture')} does not have"
            raise CheckpointError(told, where=WHERE)
        rows: Any = config.get("projector")
        self.projector: nn.Module = build_projector(kind.kind, kind.config) if kind else _linear(rows)
        self._takes: int = kind.width if kind else rows[0]["in"]

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
            scores: list[torch.Tensor | None] = [None] * len(members)
            if attention and self.reads == Reads():
                features, scores = class_attention(self.config, self.encoder, lambda x=pixels: self.features(x))
            elif attention:
                raise CheckpointError(f"a projector of {self.reads.what} features has no tokens to rank", where=WHERE)
            else:
                features = self.features(pixels)
            if features.shape[-1] != self._takes:
                raise CheckpointError(
                    f"the projector takes tokens of {self._takes} numbers but the encoder gives {features.shape[-1]}",
                    where=WHERE,
                )
            look: Any = getattr(self.projector, "look", None)
            if look is not None:
                features = look(features)
            for i, tokens, score, given in zip(members, self.projector(features), scores, features, strict=True):
                seen[i] = Seen(tokens, score, features=given)
        return [seen[i] for i in range(len(images))]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the projector is given for images [B, 3, H, W], in a shape of `fuse.branches.encoder_reads`."""
        return read(self.config, self.encoder, pixels, self.reads)

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """The encoder's own patch tokens [B, n, width] of images [B, 3, H, W]."""
        return read(self.config, self.encoder, pixels, Reads())


def described(config: Mapping[str, Any]) -> Described | None:
    """The branch's projector of a kind, from its JSON; None where it is a list of linear layers."""
    given = config.get("projector")
    return describe(given.get("kind"), given.get("config"), WHERE) if isinstance(given, Mapping) else None


def _head(kind: Described | None) -> int:
    """The numbers of a pooled or projected feature, for which the tower keeps its head; 0 without."""
    return kind.width if kind and kind.reads.what in ("pooled", "projected") else 0


def _linear(rows: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, row in enumerate(rows or ()):
        if i and rows[i - 1]["out"] != row["in"]:
            raise CheckpointError(f"projector layer {i} does not fit the one before it", where=WHERE)
        layers += [nn.GELU()] * bool(layers) + [nn.Linear(row["in"], row["out"], bias=row["bias"])]
    if not layers:
        raise CheckpointError("an encoder branch has no projector", where=WHERE)
    return nn.Sequential(*layers)


@lru_cache(maxsize=64)
def _grid(config: str, height: int, width: int) -> tuple[int, int, int]:
    """(features, h, w) of an image of that size, from the tower itself on meta; h = w = 0 where they are no grid."""
    with torch.device("meta"):
        branch = EncoderBranch(json.loads(config)).eval()
        pixels = torch.empty(1, 3, height, width, dtype=torch.get_default_dtype())
        settle(branch._fixed, pixels)
        with torch.no_grad():
            if branch.reads != Reads():
                return branch.features(pixels).shape[-2], 0, 0
            found = patch_map(branch.config, branch.encoder, pixels).shape
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
        self._kind = described(config)
        self._preprocess, self._part = preprocess(config, folder)

    def prepare(self, image: Image.Image) -> Prepared:
        """image: RGB, any size. Every image has the same number of tokens, except where the encoder's own processor
        keeps the image's shape.
        """
        pixels = self._preprocess(image)
        height, width = pixels.shape[-2:]
        stated = grid_for(self._stated, (height, width))
        if self._kind is not None:
            return self._lay(pixels, self._tokens(self._kind, height, width, stated is not None), None, image.size)
        if stated:
            return self._lay(pixels, stated[0] * stated[1], stated, image.size)
        tokens, rows, columns = self._measured(height, width)
        return self._lay(pixels, tokens, (rows, columns) if rows else None, image.size)

    def _tokens(self, kind: Described, height: int, width: int, known: bool) -> int:
        """How many tokens a projector of a kind makes of an image. known: it has the size that the JSON is about."""
        tokens = self._stated.get("tokens")
        if tokens is not None and (known or tokens == 0 or kind.reads.what in ("pooled", "class")):
            if type(tokens) is not int or not 0 <= tokens < 1 << 24:
                raise CheckpointError(f"tokens is {tokens!r}, not a number of tokens", where=WHERE)
            return tokens
        return kind.tokens(self._measured(height, width)[0])

    def _measured(self, height: int, width: int) -> tuple[int, int, int]:
        try:
            return _grid(self._config, height, width)
        except (ValueError, RuntimeError, AssertionError) as error:
            told = (str(error).splitlines() or [""])[0][:200]
            raise CheckpointError(f"the encoder takes no images of {height}x{width}: {told}", where=WHERE) from None

    def _lay(self, pixels: torch.Tensor, tokens: int, grid: tuple[int, int] | None, size: tuple[int, int]) -> Prepared:
        if tokens == 0:  # one placeholder, which stays empty, so that the prompt knows of the image
            return Prepared({"pixel_values": pixels}, (1,), variable=True)
        part = self._part(size)
        places = grid_boxes(*grid, part) if grid and part else None
        return Prepared({"pixel_values": pixels}, (tokens,), (1, *grid) if grid else None, places=places)
