"""LMEye's second generation, which looks through BLIP-2's Q-Former (Lmeye/lmeye_model.py at 8367a3a).

Behind the question stand one request `<img-q>` and five slots `<img-d>`. The state of the request makes five vectors;
with all that the Q-Former gave they go through a frozen CLIP text tower, whose last five positions make the slots.
Those are the second to the fifth vector and the token that ends the text: the official slice is off by one, and is
kept, because the published weights were trained with it.

The first pass of an encoder-decoder is its encoder's alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fuse.grafts.graft import Graft, Reading, State
from fuse.grafts.lmeye_slots import groups_of, put, stacked
from fuse.grafts.lmeye_text import ClipText


class LmeyeBlip2Graft(Graft):
    """Two offsets, three linear maps and `clip`, the text tower."""

    RUNS = 2  # it asks for a pass of the language model over the prompt
    _no_split_modules = ("LmeyeBlip2Graft",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `fuse.grafts.lmeye_blip2_files` describes it."""
        super().__init__(config)
        d, c, w, r = (config[name] for name in ("hidden_size", "width", "features", "requests"))
        self.instruction_embedding_imgd = nn.Embedding(1, d)
        self.instruction_embedding_imgq = nn.Embedding(1, d)
        self.instruction_blip22clip = nn.Linear(d, r * c)
        self.instruction_linear = nn.Linear(w, c)
        self.instruction_imgdLinear = nn.Linear(c, d)
        self.clip = ClipText(config["clip"], c)

    def attach(self, slots: Mapping[str, Any]) -> None:
        """It hears and speaks through the embeddings alone."""

    def read(self, reading: Reading) -> State:
        """Fill the slots. A prompt without slots is left as it is; the slots' own embeddings are not looked at.

        Raises RecipeError for slots that belong to no image.
        """
        count = self.config["requests"]
        groups = groups_of(reading, {"imgq": 1, "imgd": count})
        if not groups:
            return {}
        one = torch.zeros(1, dtype=torch.long, device=reading.embeds.device)
        request, offset = self.instruction_embedding_imgq(one), self.instruction_embedding_imgd(one)  # [1, d]
        rows = torch.tensor([group.row for group in groups])[:, None]
        at, columns = (torch.stack([group.columns[name] for group in groups]) for name in ("imgq", "imgd"))
        first = put(put(reading.embeds, rows, at, request[None]), rows, columns, offset[None])
        asked = reading.run(first, reading.attention_mask)[rows[:, 0], at[:, 0]]  # [n, d]
        image = stacked(groups, None, self.config["features"], offset)  # [n, m, w]
        said = self.instruction_imgdLinear(self.interact(image, asked.to(offset)))  # [n, r, d]
        reading.embeds = put(first, rows, columns, offset[None] + self.scale * said)
        return {}

    def interact(self, image: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Q-Former's tokens [n, m, w] and the request's state [n, d] meet in the text tower: the answer [n, r, c]."""
        requests = self.instruction_blip22clip(asked).unflatten(1, (self.config["requests"], -1))
        last = self.clip(torch.cat([self.instruction_linear(image), requests], 1))
        return self.clip.text_projection(last[:, -self.config["requests"] :])
