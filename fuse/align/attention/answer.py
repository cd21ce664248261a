"""An answer and where it looked: the model answers while its attention is watched, and its visual tokens get places."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fuse.ask import Answerer, pad_of, room, speaker_of
from fuse.branches.cells import kept_cells
from fuse.branches.native_eyes import NativeEyes
from fuse.branches.native_table import NATIVE
from fuse.branches.places import Boxes, grid_boxes
from fuse.errors import CheckpointError, RecipeError
from fuse.report import attention
from fuse.report.watch import watching


@dataclass(frozen=True)
class Heard:
    """An answer.

    words: [n], its token ids. paid: float64 [prompt], what they pay to each token of the prompt, a mean over the words,
    the layers and their heads. ids: the prompt. prompt: what a fused model read of it; None for a native one.
    """

    words: torch.Tensor
    paid: NDArray[np.float64]
    ids: list[int]
    prompt: Any | None


@dataclass(frozen=True)
class Look:
    """What an answer paid to one image through one encoder.

    share: the part of the answer's attention that went to its tokens. tokens: how many there are. paid, boxes: [m] and
    [m, 4], the same by place, where tokens that were pooled are told apart again; None where the order of the tokens is
    not known.
    """

    share: float
    tokens: int
    paid: NDArray[np.float64] | None
    boxes: Boxes | None


def hear(
    answerer: Answerer, inputs: Any, *, max_tokens: int = 128, layers: range | None = None,
    say: Callable[[str], None] | None = None,
) -> Heard:  # fmt: skip
    """The greedy answer and what its words pay to each token of the prompt.

    inputs: as `fuse.ask.inputs_of` gives them. layers: the language model's layers that count, from 0; all of them by
    default. The language model computes attention the eager way meanwhile, whatever it was loaded with: flash and
    scaled-dot-product attention yield no weights. A decoder beside its encoder looks at the prompt through its
    cross-attention. Raises RecipeError for layers that the language model has not, and CheckpointError for attention
    that is not finite.
    """
    model = answerer.model
    speaker = speaker_of(model)
    apart, start = bool(speaker.config.is_encoder_decoder), inputs["input_ids"].shape[1]
    with torch.no_grad():
        prompt, before = _read(model, inputs) if model.config.model_type == "fuse" else (None, 0)
        with watching(speaker.get_decoder()) as attentions:
            out = model.generate(
                **inputs, max_new_tokens=room(answerer, start, max_tokens), do_sample=False, num_beams=1,
                pad_token_id=pad_of(answerer.tokenizer), streamer=answerer.streamer(say),
            )  # fmt: skip
    words = out[0, 1 if apart else start :]
    steps = attentions[before : before + len(words)]
    if layers is not None:
        check_layers(layers, len(steps[0]), answerer.folder)
        steps = [step[layers.start : layers.stop] for step in steps]
    ids = inputs["input_ids"][0].tolist()
    # a decoder beside its encoder looks at the prompt alone in every step, as another does in its first
    runs = [[step] for step in steps] if apart else [steps]
    paid = np.mean([attention.answer_attention(run, len(ids)) for run in runs], axis=0)
    if not np.isfinite(paid).all():
        raise CheckpointError("its attention is not all finite numbers", where=answerer.folder)
    return Heard(words, paid, ids, prompt)


def check_layers(layers: range, count: int, folder: Path) -> None:
    """Raise RecipeError where a language model of `count` layers has not all of these."""
    if layers.stop > count:
        asked = str(layers.start) if len(layers) == 1 else f"{layers.start}-{layers.stop - 1}"
        raise RecipeError(f"--layers is {asked}, and its language model has layers 0 to {count - 1}", where=folder)


def _read(model: Any, inputs: Any) -> tuple[Any, int]:
    """The prompt with its visual tokens, and how many passes of the language model its grafts ask for meanwhile."""
    passes: list[None] = []
    hook = model.get_decoder().register_forward_pre_hook(lambda module, args: passes.append(None))
    try:
        return model.read(**inputs), len(passes)
    finally:
        hook.remove()


def fused_looks(answerer: Answerer, heard: Heard, images: Sequence[Image.Image]) -> dict[str, list[Look]]:
    """Branch name -> what was paid to each image, for a fused folder."""
    processor: Any = answerer.processor
    prepared = [processor.look(image) for image in images]
    found: dict[str, list[Look]] = {}
    for number, branch in enumerate(answerer.model.config.branches):
        own = heard.paid[np.asarray(heard.ids) == branch["token_id"]]
        looks = found.setdefault(branch["name"], [])
        for image, seen in zip(prepared, heard.prompt.seen[branch["name"]], strict=True):  # pyright: ignore
            cells = kept_cells(branch.get("prune") or "pool", seen.runs, seen.shares, seen.index.tolist(), seen.grid)
            boxes = _boxes(image[number].places, image[number].grid)
            if boxes is not None and seen.chosen is not None:
                boxes = boxes[seen.chosen.cpu().numpy()]
            mine, own = own[: len(cells)], own[seen.places :]
            paid, placed = (None, None) if boxes is None else spread(mine, cells, boxes)
            looks.append(Look(float(mine.sum()), len(seen.tokens), paid, placed))
    return found


def native_look(answerer: Answerer, config: Mapping[str, Any], heard: Heard, inputs: Any, image: Image.Image) -> Look:
    """The same for a native folder asked about one image. config: its config.json.

    Raises RecipeError for an image that the member's processor refuses.
    """
    token = config.get("image_token_id", config.get("image_token_index"))
    token = getattr(answerer.processor, "image_token_id", None) if token is None else token
    paid = heard.paid[np.asarray(heard.ids) == token]
    boxes = None
    if config["model_type"] in NATIVE:
        prepared = NativeEyes(config, answerer.folder).prepare(image)
        boxes = _boxes(prepared.places, prepared.grid)
    elif "image_grid_thw" in inputs:  # of a class that is no branch yet, and whose tokens are a grid all the same
        merge = config["vision_config"].get("spatial_merge_size", 2)
        _, high, wide = inputs["image_grid_thw"][0].tolist()
        boxes = grid_boxes(high // merge, wide // merge)
    fits = boxes is not None and len(boxes) == len(paid)
    return Look(float(paid.sum()), len(paid), paid if fits else None, boxes if fits else None)


def _boxes(places: Boxes | None, grid: tuple[int, int, int] | None) -> Boxes | None:
    """The places of a branch's tokens; where it says only that they are the cells of one grid, those."""
    if places is not None:
        return places
    return grid_boxes(grid[1], grid[2]) if grid is not None and grid[0] == 1 else None


def spread(paid: NDArray[np.float64], cells: list[tuple[int, ...]], boxes: Boxes) -> tuple[NDArray[np.float64], Boxes]:
    """What each original token gets of what its kept token was paid, with that token's box.

    paid: [k], of the kept tokens. cells: for each, the original tokens it speaks for (`kept_cells`), which get equal
    parts. boxes: [n, 4], of all original tokens; of those that no kept token speaks for, nothing is returned.
    """
    parts = [(value / len(some), cell) for value, some in zip(paid, cells, strict=True) for cell in some]
    return np.array([value for value, _ in parts]), boxes[[cell for _, cell in parts]]
