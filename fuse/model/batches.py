"""Batches: which images belong to which prompt, and rows of one length."""

from typing import Any

import torch
from PIL import Image

from fuse.errors import RecipeError
from fuse.images import as_image


def deal(images: Any, prompts: list[str], token: str) -> list[list[Image.Image]]:
    """Images by prompt, as RGB. images: None, one image, a list for all prompts in order, or a list of lists.

    Raises RecipeError where a prompt does not hold the image token once for every image of its.
    """
    counts = [prompt.count(token) for prompt in prompts]
    given = _by_prompt(images, counts)
    if len(given) != len(prompts):
        raise RecipeError(f"{len(prompts)} prompts and images for {len(given)}", hint="give a list by prompt")
    for number, (count, some) in enumerate(zip(counts, given, strict=True), 1):
        if count != len(some):
            raise RecipeError(
                f"prompt {number} has {count} image tokens {token!r} and {len(some)} images",
                hint="write the image token once for every image",
            )
    return [[as_image(one) for one in some] for some in given]


def _by_prompt(images: Any, counts: list[int]) -> list[list[Any]]:
    if images is None:
        return [[] for _ in counts]
    if not isinstance(images, list | tuple):
        return [[images]]
    if any(one is None or isinstance(one, list | tuple) for one in images):
        return [list(some) if isinstance(some, list | tuple) else [some] * (some is not None) for some in images]
    if len(images) == sum(counts):
        waiting = iter(images)
        return [[next(waiting) for _ in range(count)] for count in counts]
    return [list(images)] if len(counts) == 1 else [[one] for one in images]


def padded(
    rows: list[list[int]], tokenizer: Any, side: str | None = None, length: int | None = None
) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [B, L] of rows of ids, filled up on the tokenizer's padding side, or on `side`.

    length: fill up to this many at least. Raises RecipeError for a row without tokens.
    """
    for number, row in enumerate(rows, 1):
        if not row:
            raise RecipeError(f"prompt {number} has no tokens")
    length = max([length or 0, *map(len, rows)])
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids, mask = [], []
    for row in rows:
        gap = length - len(row)
        left = (side or tokenizer.padding_side) == "left"
        ids.append([fill] * gap + row if left else row + [fill] * gap)
        mask.append([0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
