"""Trains the zoo's vision towers: small CLIP vision transformers that tell what stands at every place."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from zoo_base import Say, optimizer_of, rate_at, step_on
from zoo_world import GREY, KINDS, PLACES, Scene, draw, new_scene

from fuse import torchvision_shim

torchvision_shim.install()
from transformers import CLIPVisionConfig, CLIPVisionModel  # noqa: E402

BATCH, RATE, STEPS = 64, 2e-3, 1000
WIDTH = 96


@dataclass(frozen=True)
class Sight:
    """What a member can see: side of its picture and of a patch in pixels, if hue reaches it, what it is taught."""

    name: str
    side: int
    patch: int
    color: bool
    kind: str

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2


HUE = Sight("hue", 24, 8, True, "color")
FORM = Sight("form", 48, 12, False, "shape")
SIGN = Sight("sign", 72, 12, False, "letter")


def tower_config(sight: Sight) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
        image_size=sight.side, patch_size=sight.patch, projection_dim=WIDTH,
    )  # fmt: skip


def pixels(picture: Image.Image, side: int) -> np.ndarray:
    """What the member's image processor makes of a picture: float32 [3, side, side] in -1..1."""
    small = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    return (small.transpose(2, 0, 1) / 255 - 0.5) / 0.5


def pictures(random: Random, sight: Sight, count: int) -> tuple[list[Scene], Tensor]:
    """Scenes, and the pictures of them as the member's tower takes them: float32 [count, 3, side, side]."""
    scenes = [new_scene(random) for _ in range(count)]
    return scenes, torch.from_numpy(np.stack([pixels(draw(scene, random), sight.side) for scene in scenes]))


def grey_only(tower: nn.Module) -> None:
    """Make the tower blind to hue: its first weights for red, green and blue in the proportions of luminance."""
    weight = next(p for name, p in tower.named_parameters() if name.endswith("patch_embedding.weight"))
    shares = torch.tensor(GREY)[None, :, None, None]
    with torch.no_grad():
        weight.copy_((weight * shares).sum(1, keepdim=True) / (shares**2).sum() * shares)


def _values(scenes: Sequence[Scene], kind: str) -> Tensor:
    """The number of the value at each place, 0 where nothing stands: int64 [B, 9]."""
    table = torch.zeros(len(scenes), len(PLACES), dtype=torch.long)
    for row, scene in enumerate(scenes):
        for thing in scene:
            table[row, PLACES.index(thing.place)] = 1 + KINDS[kind].index(getattr(thing, kind))
    return table


class PlaceHead(nn.Module):
    """Looks each place up among the patches [B, N, WIDTH], as a language model will: logits [B, 9, values]."""

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(len(PLACES), WIDTH))
        self.look = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.name = nn.Linear(WIDTH, 1 + len(KINDS[sight.kind]))

    def forward(self, patches: Tensor) -> Tensor:
        found, _ = self.look(self.places.expand(len(patches), -1, -1), patches, patches, need_weights=False)
        return self.name(found)


def train_tower(sight: Sight, seed: int, *, steps: int = STEPS, say: Say = print) -> CLIPVisionModel:
    """A tower from nothing, taught to say what stands at every place."""
    torch.manual_seed(seed)
    random = Random(f"tower {sight.name} {seed}")
    tower = CLIPVisionModel(tower_config(sight))
    head = PlaceHead(sight)
    optimizer = optimizer_of(([*tower.parameters(), *head.parameters()], RATE))
    hits, began = list[float](), time.monotonic()
    for step in range(1, steps + 1):
        if not sight.color:
            grey_only(tower)
        scenes, seen = pictures(random, sight, BATCH)
        tokens = tower(pixel_values=seen).last_hidden_state[:, 1:]
        logits = head(tokens)
        wanted = _values(scenes, sight.kind)
        step_on(optimizer, cross_entropy(logits.flatten(0, 1), wanted.flatten()), rate_at(step, steps))
        hits.append((logits.argmax(-1) == wanted)[wanted > 0].float().mean().item())
        if step % 200 == 0:
            say(f"{sight.name} tower: step {step}, {sum(hits[-50:]) / 50:.1%} right, {time.monotonic() - began:.0f} s")
    if not sight.color:
        grey_only(tower)
    return tower.eval()
