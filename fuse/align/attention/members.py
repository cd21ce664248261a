"""Folders asked about one image, one after another: what each answered and its maps on the common grid."""

import gc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fuse import families, strict_json
from fuse.align.attention.answer import Look, check_layers, fused_looks, hear, native_look
from fuse.align.attention.maps import Map, common_map, covered
from fuse.ask import inputs_of, load
from fuse.ask_folder import check_folder
from fuse.errors import CheckpointError, RecipeError

CROSSED = frozenset({"mllama"})  # images are no tokens of the prompt
LANGUAGE = "text_config"  # of a fused folder


@dataclass(frozen=True)
class Watched:
    """A column: a folder, or one branch of a fused one.

    map: float64 [h, w] over the image, summing to the part of the answer's attention whose place is known; None where
    no token's place is. seen: the part of the image's area that has a token, None likewise.
    """

    folder: Path
    branch: str | None
    model_type: str
    answer: str
    share: float
    tokens: int
    map: Map | None
    seen: float | None


def check_members(folders: Sequence[Path], layers: range | None) -> None:
    """What can be told before a model is loaded, of every folder.

    Raises RecipeError for a folder that is not there, sees no images or reads them through cross-attention, and where a
    layer is asked for that its language model has not; CheckpointError as `fuse.ask_folder.check_folder` does.
    """
    for folder in folders:
        config, sees = check_folder(folder)
        fused = config["model_type"] == "fuse"
        if not sees or (fused and not config.get("branches")):
            raise RecipeError("sees no images, so there is nothing to draw its attention on", where=folder)
        try:
            check_folder(folder, images=[folder])
        except RecipeError:
            raise CheckpointError("has no image processor, so it cannot be shown an image", where=folder) from None
        if config["model_type"] in CROSSED:
            told = f"{config['model_type']} reads images through cross-attention, and its prompt has no visual tokens"
            raise RecipeError(f"{told} to draw", where=folder, hint="leave it out")
        if layers is not None:
            check_layers(layers, _layers(config[LANGUAGE] if fused else config, folder), folder)


def _layers(config: Mapping[str, Any], folder: Path) -> int:
    where = str(folder)
    family = families.family_of(config, where)
    decoder = families.text_config(config, family, where).get("num_decoder_layers")  # T5, whose decoder is watched
    return decoder if isinstance(decoder, int) else families.basis_of(config, family, where).layers


def watch_folder(
    folder: Path, image: Path, opened: Image.Image, question: str, *, layers: range | None = None,
    max_tokens: int = 128, device: str = "cpu", cells: int = 32,
) -> list[Watched]:  # fmt: skip
    """What a folder answers in its own template, and where it looked: one column, or one for each branch it fused.

    opened: the image in file `image`. cells: of the common grid's longer side. The model is freed before this returns.
    Raises RecipeError for an image that its processor refuses and as `fuse.ask.load` does.
    """
    config = strict_json.read_object(folder / "config.json")
    answerer = load(folder, device=device, images=[image])
    inputs = inputs_of(answerer, question, (image,)).to(answerer.model.device)
    heard = hear(answerer, inputs, max_tokens=max_tokens, layers=layers)
    answer = answerer.tokenizer.decode(heard.words, skip_special_tokens=True).strip()
    looks: dict[str | None, Look] = {}
    if config["model_type"] == "fuse":
        looks |= {name: seen[0] for name, seen in fused_looks(answerer, heard, [opened]).items()}
    else:
        looks[None] = native_look(answerer, config, heard, inputs, opened)
    del answerer, inputs, heard
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    kind = str(config["model_type"])
    return [
        Watched(folder, branch, kind, answer, look.share, look.tokens, *_map(look, opened, cells))
        for branch, look in looks.items()
    ]


def _map(look: Look, image: Image.Image, cells: int) -> tuple[Map, float] | tuple[None, None]:
    """The map of a look, and how much of the image it could see; None where no place is known or nothing was paid."""
    if look.paid is None or look.boxes is None:
        return None, None
    found = common_map(look.paid, look.boxes, image.size, cells)
    return (found, covered(look.boxes, image.size, cells)) if found.any() else (None, None)


def named(watched: Sequence[Sequence[Watched]], labels: Sequence[str]) -> dict[str, Watched]:
    """Each column under its folder's label, branches as LABEL/BRANCH; what is named twice gets a number."""
    found: dict[str, Watched] = {}
    for label, columns in zip(labels, watched, strict=True):
        for column in columns:
            found[_free(label if column.branch is None else f"{label}/{column.branch}", found)] = column
    return found


def _free(name: str, taken: Collection[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free
