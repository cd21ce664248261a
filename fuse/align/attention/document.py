"""Where each model looks in an image when it answers a question: the document of `fuse inspect attention`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from fuse.align.attention.maps import MEASURES, TOP, centre, from_flat
from fuse.align.attention.members import Watched, check_members, named, watch_folder
from fuse.align.attention.words import sentences
from fuse.align.encoders.compare import labels
from fuse.errors import RecipeError
from fuse.images import open_image

VERSION = 1
DIGITS = 9  # of a cell's part in the document


@dataclass(frozen=True)
class Watching:
    """What was found. document: ready for JSON. image: as it was opened. members: column name -> what was watched."""

    document: dict[str, Any]
    image: Image.Image
    members: Mapping[str, Watched]


def inspect_attention(
    folders: Sequence[Path], image: Path, question: str, *, layers: range | None = None, max_tokens: int = 128,
    device: str = "cpu", cells: int = 32, say: Callable[[str], None] | None = None,
) -> Watching:  # fmt: skip
    """Every folder's answer to the question about the image, where it looked, and how far apart those places are.

    Each folder is asked in its own template and its models are loaded one at a time. A fused folder gives a column for
    each branch. What an answer pays to a visual token is a mean over the answer's tokens, the heads and the layers of
    its language model (`fuse.report.attention`); layers: which count, all of them by default. Maps come to one grid
    over the image, `cells` on its longer side (`fuse.align.attention.maps.common_map`), where padding and crops of each
    model's own preprocessing are undone.

    say: gets a line before each folder is loaded.

    `members` has by name: folder, branch, model_type, answer, share (the part of the answer's attention that goes to
    the visual tokens), tokens (how many), placed (the part of that share whose place on the image is known: not
    padding, nor line breaks), seen (the part of the image's area that has a token), map (rows of cells, summing to 1),
    centre (x, y) and from_flat. From placed on, all are null where no place is known. `pairs` has every two members
    with a map, and the measures of `fuse.align.attention.maps`.

    Raises RecipeError for an image that does not open, an empty question, folders that see nothing
    (`fuse.align.attention.members.check_members`) and as loading does.
    """
    if not question.strip():
        raise RecipeError("--question is empty")
    opened = open_image(image)
    check_members(folders, layers)
    names = labels([str(folder) for folder in folders])
    watched: list[list[Watched]] = []
    for number, (name, folder) in enumerate(zip(names, folders, strict=True), 1):
        if say:
            say(f"asking {name} ({number} of {len(folders)})")
        watched.append(
            watch_folder(
                folder, image, opened, question, layers=layers, max_tokens=max_tokens, device=device, cells=cells
            )
        )
    members = named(watched, names)
    document: dict[str, Any] = {
        "inspect": "attention",
        "version": VERSION,
        "image": {"file": str(image), "size": list(opened.size)},
        "question": question,
        "layers": None if layers is None else [layers.start, layers.stop - 1],
        "averaged": "over the answer's tokens, the heads, and " + ("all layers" if layers is None else "these layers"),
        "top": TOP,
        "members": {name: _member(one) for name, one in members.items()},
        "pairs": _pairs(members),
    }
    document["sentences"] = sentences(document)
    return Watching(document, opened, members)


def _member(one: Watched) -> dict[str, Any]:
    known: dict[str, Any] = {"placed": None, "seen": one.seen, "map": None, "centre": None, "from_flat": None}
    if one.map is not None:
        parts = one.map / one.map.sum()
        known |= {
            "placed": min(float(one.map.sum()) / one.share, 1.0),
            "map": [[round(float(value), DIGITS) for value in row] for row in parts],
            "centre": list(centre(one.map)),
            "from_flat": from_flat(one.map),
        }
    return {
        "folder": str(one.folder), "branch": one.branch, "model_type": one.model_type, "answer": one.answer,
        "share": one.share, "tokens": one.tokens, **known,
    }  # fmt: skip


def _pairs(members: Mapping[str, Watched]) -> list[dict[str, Any]]:
    drawn = {name: one.map for name, one in members.items() if one.map is not None}
    return [
        {"a": a, "b": b, **{name: measure(drawn[a], drawn[b]) for name, measure in MEASURES.items()}}
        for a, b in combinations(drawn, 2)
    ]
