"""Features of vision encoders over batches of images: at the blocks of the tower, and behind the projector."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from fuse.align.features.blocks import Grid, Lie, Map, maps, watching
from fuse.align.features.open import Encoder
from fuse.branches.kinds import run_branch
from fuse.errors import CheckpointError, FuseError
from fuse.model.visual import VARIABLE

END = "end"  # the one layer of a tower whose blocks are not known


@dataclass(frozen=True)
class Looked:
    """What an encoder made of a batch of images.

    layers: by layer and image. projected: by image, in the language model's space; None of a bare encoder.
    """

    layers: list[list[Map]]
    projected: list[Map] | None


@torch.inference_mode()
def look(encoder: Encoder, layers: Sequence[int], prepared: Sequence[Any], words: torch.Tensor) -> Looked:
    """The features of a batch of images, float32 on the CPU. Images that become inputs of one shape run together.

    layers: numbers of the encoder's blocks; none for a tower whose blocks are not known. prepared: what
    `encoder.prepare` made of each image. words: ids [n] of a question, for branches that choose their tokens by it.
    Raises CheckpointError where the encoder does not take what was prepared.
    """
    inputs = [one.inputs if encoder.projects else {"pixel_values": one} for one in prepared]
    groups: dict[Any, list[int]] = {}
    for i, one in enumerate(inputs):
        grid = tuple(one["image_grid_thw"].flatten().tolist()) if "image_grid_thw" in one else ()
        groups.setdefault((*((name, tuple(value.shape)) for name, value in one.items()), grid), []).append(i)
    by_layer: list[list[Any]] = [[None] * len(prepared) for _ in layers or (END,)]
    projected: list[Any] = [None] * len(prepared)
    watched = {layer: encoder.blocks[layer] for layer in layers}
    for members in groups.values():
        together = {name: [inputs[i][name] for i in members] for name in inputs[members[0]]}
        lie = _lie(encoder, together)
        with watching(watched) as seen:
            found = _run(encoder, together, words)
        given = [maps(seen[layer], len(members), lie, _rows_first(encoder)) for layer in layers if seen[layer]]
        if not layers:
            given = [maps([found.cpu()], len(members), lie)]
        for at, layer in zip(by_layer, given, strict=True):
            for i, one in zip(members, layer, strict=True):
                at[i] = one
        if encoder.projects:
            for i, one in zip(members, found, strict=True):
                projected[i] = _projected(one.tokens.cpu(), prepared[i])
    return Looked(by_layer, projected if encoder.projects else None)


def layers_that_run(encoder: Encoder, one: Any, words: torch.Tensor) -> int:
    """How many blocks, from the first, run when the encoder looks: LLaVA's code stops behind the one that it reads.

    one: what `encoder.prepare` made of an image. Raises as `look`.
    """
    inputs = one.inputs if encoder.projects else {"pixel_values": one}
    with torch.inference_mode(), watching(dict(enumerate(encoder.blocks))) as seen:
        _run(encoder, {name: [value] for name, value in inputs.items()}, words)
    return sum(bool(given) for given in seen.values())


def _run(encoder: Encoder, inputs: dict[str, list[torch.Tensor]], words: torch.Tensor) -> Any:
    device = next(encoder.module.parameters()).device
    inputs = {name: [value.to(device) for value in values] for name, values in inputs.items()}
    text = [words] * len(inputs["pixel_values"]) if encoder.branch["kind"] in VARIABLE else []
    try:
        if not encoder.projects:
            return encoder.module(torch.stack(inputs["pixel_values"]))
        return run_branch(encoder.branch, encoder.module, inputs, text=text, embed=encoder.embed, attention=False)
    except (FuseError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"its encoder does not take its images: {told[0]}", where=encoder.name,
            hint="the processor's files and the encoder do not agree",
        ) from error  # fmt: skip


def _projected(tokens: torch.Tensor, prepared: Any) -> Map:
    grid = prepared.grid
    if grid is not None and prod(grid) == len(tokens) and grid[0] == 1:
        return Map(tokens, (grid[1], grid[2]))
    places = prepared.places
    return Map(tokens, None, places if places is not None and len(places) == len(tokens) else None)


def _lie(encoder: Encoder, inputs: dict[str, list[torch.Tensor]]) -> Lie:
    """How tokens of these images lie in the tower."""
    tower: Any = getattr(encoder.module, "vision_tower", None)
    if "image_grid_thw" in inputs:
        vision = encoder.branch["config"]["vision_config"]
        merge, patch = vision.get("spatial_merge_size", 2), vision.get("patch_size", 14)
        _, h, w = inputs["image_grid_thw"][0].flatten().tolist()
        window = vision.get("window_size", 112) // merge // patch
        return Lie((h, w), merge, window if encoder.architecture == "qwen2_5_vl" else 0)
    height, width = inputs["pixel_values"][0].shape[-2:]
    return Lie(
        _patches(encoder, height, width), whole=encoder.whole_view, aspect=height / width,
        channels_last=tower is None and getattr(getattr(encoder.module, "encoder", None), "output_fmt", "") == "NHWC",
    )  # fmt: skip


def _patches(encoder: Encoder, height: int, width: int) -> Grid | None:
    """(h, w) patches of an image for a tower of blocks of one width; None where its files do not tell."""
    config = encoder.branch["config"]
    stated = config.get("vision_config") or config.get("tower") or {}
    stated = stated.get("vision_cfg", stated) if isinstance(stated, dict) else {}
    size = stated.get("patch_size")
    if size is None:
        size = _patch_of(encoder.module)
    size = (size, size) if isinstance(size, int) else size
    return (height // size[0], width // size[1]) if size else None


def _patch_of(module: Any) -> Any:
    """The patch size that the tower itself has, as transformers and timm write it."""
    tower = next((found for name in ("vision_tower", "encoder") if (found := getattr(module, name, None))), None)
    for holder in (getattr(tower, "config", None), getattr(tower, "patch_embed", None)):
        if size := getattr(holder, "patch_size", None):
            return tuple(size) if not isinstance(size, int) else size
    return None


def _rows_first(encoder: Encoder) -> bool:
    """Whether tokens come before images, as in open_clip's towers that are not batch_first."""
    tower = getattr(encoder.module, "encoder", None)
    return not getattr(getattr(tower, "transformer", None), "batch_first", True)
