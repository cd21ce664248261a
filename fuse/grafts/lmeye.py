"""LMEye's interactive perception network, first generation (arXiv 2305.03701, section 3; modeling_LMEye.py).

The language model reads a prompt twice. Behind the question stand q slots `<img-d>`; what the first pass thinks at the
first of them is the request. It meets soft prompts made of the image in a frozen CLIP text tower; the tower's answer
is put into the slots for the second pass, which answers the question.

The official `generate` gives its second pass no attention mask; for one prompt without padding that is the same as the
mask which both passes have here. Its training code reads the request from a prompt with a single slot; a causal host
makes that the same, because the first slot does not see those behind it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fuse.grafts.graft import Graft, Reading, State
from fuse.grafts.lmeye_slots import groups_of, put, stacked
from fuse.grafts.lmeye_text import ClipText


class LmeyeGraft(Graft):
    """`embedding_imgd`, `llm2clip`, `promptMlp`, `imgdLinear` and `clip`, the text tower."""

    RUNS = 2  # it asks for a pass of the language model over the prompt
    _no_split_modules = ("LmeyeGraft",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `fuse.grafts.lmeye_files` describes it."""
        super().__init__(config)
        d, c, p, q = (config[name] for name in ("hidden_size", "width", "prompts", "slots"))
        self.embedding_imgd = nn.Embedding(1, d)
        self.llm2clip = nn.Linear(d, c)
        self.promptMlp = nn.Linear(c, p * c)
        self.imgdLinear = nn.Linear(c, q * d)
        self.clip = ClipText(config["clip"], c)

    def attach(self, slots: Mapping[str, Any]) -> None:
        """It hears and speaks through the embeddings alone."""

    def read(self, reading: Reading) -> State:
        """Fill the slots. A prompt without slots is left as it is.

        The slots' own embeddings are not looked at: what stands there is `embedding_imgd`, into which an importer has
        folded the row that the donor's token had. Raises RecipeError for slots that belong to no image.
        """
        groups = groups_of(reading, {"imgd": self.config["slots"]})
        if not groups:
            return {}
        offset = self.embedding_imgd(torch.zeros(1, dtype=torch.long, device=reading.embeds.device))  # [1, d]
        rows = torch.tensor([group.row for group in groups])[:, None]
        columns = torch.stack([group.columns["imgd"] for group in groups])  # [n, q]
        first = put(reading.embeds, rows, columns, offset[None])
        asked = reading.run(first, reading.attention_mask)[rows[:, 0], columns[:, 0]]  # [n, d]
        image = stacked(groups, 1, self.config["width"], offset)[:, 0]  # [n, c]
        answer = self.interact(image, self.llm2clip(asked.to(offset)))
        said = self.imgdLinear(answer).unflatten(1, (self.config["slots"], -1))  # [n, q, d]
        reading.embeds = put(first, rows, columns, offset[None] + self.scale * said)
        return {}

    def interact(self, image: torch.Tensor, request: torch.Tensor) -> torch.Tensor:
        """Image [n, c] and request [n, c] meet in the text tower, as p soft prompts and one: the answer [n, c]."""
        prompts = self.promptMlp(image).unflatten(1, (self.config["prompts"], -1))
        last = self.clip(torch.cat([prompts, request[:, None]], 1))[:, -1]
        return self.clip.text_projection(last)
