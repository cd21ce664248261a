"""`fuse inspect encoders`: how alike the features of several vision encoders are, over a folder of images.

All encoders look at one batch of images after another. Linear CKA is summed up as batches pass; what needs its samples
together gets a random draw of them, so that memory does not grow with the images.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fuse.align.encoders.document import document
from fuse.align.encoders.llm import add_llm
from fuse.align.encoders.pair import Drawn
from fuse.align.encoders.run import MEMORY, Run, Side
from fuse.align.encoders.words import overall, pair_sentences
from fuse.align.features.images import Skipped, image_files, read_batches
from fuse.align.features.llm import PROMPT
from fuse.align.features.open import Encoder, open_encoders
from fuse.ask_folder import check_folder
from fuse.devices import HINT, check_device, first
from fuse.errors import MachineError, RecipeError
from fuse.model.visual import VARIABLE
from fuse.progress import count_progress

CELLS = 64  # of the common grid at most
LIMIT = 2000  # samples of measures that need them together
BATCH = 16  # images
MOST = 64  # members, which are 2,016 pairs


@dataclass(frozen=True)
class Options:
    """layers: numbers of blocks, negative ones from the end; None for up to 12, evenly spaced. cells: the most cells
    of the common grid. limit: the most samples of a measure that needs them together. llm: also look into the language
    models. texts: what they are asked. skip_bad: pass over images that cannot be read. batch: images at a time. memory:
    bytes of the sums of CKA. device: where models run ("auto": on a GPU where there is one); the sums are on the CPU.
    shown: progress on stderr."""

    layers: tuple[int, ...] | None = None
    cells: int = CELLS
    limit: int = LIMIT
    llm: bool = False
    texts: tuple[str, ...] = (PROMPT,)
    skip_bad: bool = False
    batch: int = BATCH
    memory: int = MEMORY
    device: str = "cpu"
    shown: bool = False


@dataclass(frozen=True)
class Compared:
    """document: the result as JSON. samples: by member and place ("encoder", "projector") the rows that were drawn, the
    same samples for all members; for pictures."""

    document: dict[str, Any]
    samples: dict[str, dict[str, Drawn]]


def compare(locations: Sequence[str], folder: Path, options: Options | None = None) -> Compared:
    """Open the members, look at every image, and measure all pairs.

    locations: as `open_encoders` takes them. folder: of images. Raises RecipeError for fewer than two encoders, images
    that cannot be read (unless they are skipped) and layers that are not there; CheckpointError for members that do not
    load. What cannot be measured of a pair is told in its part of the document, and the rest goes on.
    """
    options = options or Options()
    if len(locations) > MOST:
        raise RecipeError(f"{len(locations):,} members are more than the {MOST} that are compared at once")
    check_device(options.device)  # before anything is loaded
    image_files(folder)
    encoders = [encoder for location in locations for encoder in open_encoders(location, whole=options.llm)]
    if len(encoders) < 2:
        raise RecipeError("one encoder has none to be compared with", where=locations[0], hint="name two members")
    return compare_encoders(encoders, folder, options)


def compare_encoders(encoders: Sequence[Encoder], folder: Path, options: Options) -> Compared:
    """As `compare`, of two or more encoders that are open."""
    files = image_files(folder)
    for host in {encoder.host: None for encoder in encoders if encoder.host and options.llm}:
        check_folder(host, images=files)  # before hours of features
    branches = {encoder.name for encoder in encoders if encoder.name.endswith(f"/{encoder.branch['name']}")}
    names = labels([encoder.name for encoder in encoders], branches)
    for encoder in encoders:
        _put(encoder, options.device)
    sides = [Side(name, one, _words(one, options.texts[0])) for name, one in zip(names, encoders, strict=True)]
    skipped = Skipped()
    how = {"layers": options.layers, "cells": options.cells, "limit": options.limit, "memory": options.memory}
    run = Run(sides, len(files), **how)
    with count_progress(len(files), "features", "images", shown=options.shown) as done:
        passed_over = skipped if options.skip_bad else None
        for batch in read_batches(files, folder, options.batch, run.prepare, passed_over, done):
            run.add(batch)
    if not run.images:
        raise RecipeError(f"none of its {len(files)} images can be read", where=folder)
    found, drawn = document(run, skipped, options.limit)
    if options.llm:
        read = [file for file in files if str(file.relative_to(folder)) not in skipped.why]
        add_llm(found, dict(zip(names, encoders, strict=True)), read, options.texts, options)
    for pair in found["pairs"]:
        pair["sentences"] = pair_sentences(pair, found)
    found["sentences"] = overall(found)
    return Compared(found, drawn)


def labels(given: Sequence[str], branches: Collection[str] = ()) -> list[str]:
    """Short names: the last parts of a path, or a library's architecture, as far as they tell it from the others; what
    is named twice gets a number.

    branches: those that are FOLDER/BRANCH, and keep both.

    >>> labels(["zoo/hue", "zoo/form", "zoo/hue"])
    ['hue', 'form', 'hue (2)']
    """
    forms = {name: _forms(name)[int(name in branches) :] for name in given}
    found: list[str] = []
    for name in given:
        others = {form for other in given if other != name for form in forms[other]}
        label = next((form for form in forms[name] if form not in others), name)
        times = sum(one == label or one.startswith(f"{label} (") for one in found)
        found.append(f"{label} ({times + 1})" if times else label)
    return found


def _forms(name: str) -> list[str]:
    """What a member could be called, shortest first."""
    if "=" in name and name.startswith(("timm:", "open_clip:")):
        return [name.partition("=")[0], name]
    parts = name.rstrip("/").split("/")
    return ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _put(encoder: Encoder, device: str) -> None:
    """Move an encoder's weights. Raises MachineError where they do not go."""
    try:
        encoder.module.to(first(device))
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"device {device!r}: {str(error).splitlines()[0]}", hint=HINT) from None


def _words(encoder: Encoder, text: str) -> torch.Tensor:
    """The ids of a question, for branches that choose their tokens by it."""
    if encoder.branch["kind"] not in VARIABLE or encoder.host is None:
        return torch.zeros(0, dtype=torch.long)
    from tokenizers import Tokenizer

    return torch.tensor(Tokenizer.from_file(str(encoder.host / "tokenizer.json")).encode(text).ids)
