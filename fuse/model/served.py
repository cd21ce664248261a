"""What servers ask of a fused processor, beside prompts: one image's block, and how long blocks are.

The names without a document of their own are those that vLLM's Transformers backend asks of every processor.
"""

# transformers' mixins are typed against a protocol that none of its own classes meets.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.processing_utils import MultiModalData

from fuse.images import as_image
from fuse.model.writing import branch_inputs, graft_slots, write


class ServedMixin:
    """For a processor with `fused`, the config, and `_prepare`, which looks at one image."""

    def block(self, image: Any) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The token ids that stand in a prompt for one image, and the inputs of every branch for it.

        image: as `__call__` takes it. Raises RecipeError for what is no picture.
        """
        prepared = self._prepare(as_image(image))
        inputs = branch_inputs([prepared], self.fused.branches)
        return self._block(prepared), {name: values[0] for name, values in inputs.items()}

    def _block(self, prepared: Any) -> list[int]:
        branches = self.fused.branches
        return write([branches[0]["token_id"]], [prepared], branches, self._marker, graft_slots(self.fused.grafts))

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> MultiModalData:  # fmt: skip
        """How many tokens stand for images of the sizes (height, width), and that each is one item."""
        if image_sizes is None:
            return MultiModalData()
        blocks = [self.block(Image.new("RGB", (width, height)))[0] for height, width in image_sizes]
        return MultiModalData(num_image_tokens=[len(ids) for ids in blocks], num_image_patches=[1] * len(blocks))


def kinds_of(
    mask: torch.Tensor, bare: Sequence[list[int]], blocks: Sequence[list[int]], token: int | None
) -> torch.Tensor:  # fmt: skip
    """mm_token_type_ids [B, L]: 1 over every token of an image's block, its separators and markers too, else 0.

    mask: [B, L], 1 at tokens. bare: the rows with one `token` for each image. blocks: by row, the lengths of its
    images' blocks.
    """
    found = torch.zeros_like(mask)
    for number, (row, lengths) in enumerate(zip(bare, blocks, strict=True)):
        waiting = iter(lengths)
        kinds = [kind for one in row for kind in ([1] * next(waiting) if one == token else [0])]
        found[number, mask[number] != 0] = torch.tensor(kinds)
    return found
