"""What a branch is to the fused model: eyes that prepare an image, and a module that turns it into tokens.

A kind of branch is two classes. `Eyes` knows no weights: it prepares one image and says how the image is written into
the prompt, so the processor knows the number of tokens before the model runs. `Branch` is the module: encoder and
projector. Both are built from the branch's own JSON (`config`), as config.json of a fused folder holds it, without
touching a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from fuse.branches.places import Boxes

Inputs = Mapping[str, list[torch.Tensor]]  # input name -> one tensor per image
Embed = Callable[[torch.Tensor], torch.Tensor]  # token ids [n] -> rows of the host's embedding [n, D]


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the encoder.

    inputs: tensors of this image alone, by input name, float32 or integer, on the CPU.
    layout: the image as the prompt holds it: a number is a run of that many visual tokens, a string is one marker token
    of the member's vocabulary. `(576,)` for LLaVA, `("<img>", 256, "</img>")` for InternVL.
    grid: (t, h, w), t*h*w visual tokens, where the tokens are the cells of one grid in raster order.
    variable: the layout counts the most tokens that the module may give; it may give fewer, and the last are unused.
    places: [visual tokens, 4], where each lies on the image (`fuse.branches.places`), for drawing attention.
    """

    inputs: dict[str, torch.Tensor]
    layout: tuple[int | str, ...]
    grid: tuple[int, int, int] | None = None
    variable: bool = False
    places: Boxes | None = None

    @property
    def tokens(self) -> int:
        return sum(item for item in self.layout if isinstance(item, int))


@dataclass(frozen=True)
class Seen:
    """What a branch saw in one image.

    tokens: [n, D], in the order of the layout's runs. attention: [n], the attention that the encoder's class token pays
    to each visual token, where the encoder has one and was asked for it. chosen: [n], of a branch that gives fewer
    tokens than its layout holds (`Prepared.variable`), which of those each is. features: what the projector was given,
    where it is not the patch tokens that `tokens` was made of one by one; for grafts to look at.
    """

    tokens: torch.Tensor
    attention: torch.Tensor | None = None
    chosen: torch.Tensor | None = None
    features: torch.Tensor | None = None


class Eyes(Protocol):
    """Prepares images for one branch."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        """config: the branch's JSON. folder: where the member's own processor files lie (may be empty)."""
        ...

    def prepare(self, image: Image.Image) -> Prepared:
        """image: RGB, any size."""
        ...


class Branch(Protocol):
    """The encoder and projector of one branch; a torch.nn.Module."""

    def __call__(self, inputs: Inputs, *, text: list[torch.Tensor], embed: Embed, attention: bool) -> list[Seen]:
        """The tokens of every image, in order.

        inputs: by input name, one tensor per image, floats in the branch's dtype, on its device.
        text: for each image, the token ids [n] of the words of its prompt (no placeholders, no padding); only branches
        that read the question look at it. embed: the host's embedding table. attention: also fill `Seen.attention`.
        """
        ...
