"""Which stored tensor of a base an adapter means, whatever class it was trained in."""

from collections.abc import Iterator, Mapping
from typing import Any

from fuse import families
from fuse.errors import CheckpointError
from fuse.families.family import Part, Place

# What multimodal classes, and models without a head, write before the names of a text-only checkpoint -> the latter.
_OUTER = (
    ("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.", "model."),
    ("model.text_model.", "model."), ("language_model.lm_head.", "lm_head."), ("layers.", "model.layers."),
    ("h.", "transformer.h."), ("decoder.layers.", "model.decoder.layers."),
)  # fmt: skip


def meanings(config: Mapping[str, Any], name: str) -> Iterator[tuple[Part, str]]:
    """What a name in the model that was trained may mean in a checkpoint of that config, the likeliest first.

    Names of the checkpoint's own class, in any layout that transformers used; then those of its language model alone;
    then those of a multimodal class around it.
    """
    place = place_of(config, name)
    if place is not None:
        yield place.part, place.canonical
    yield "language", name
    for outer, plain in _OUTER:
        if name.startswith(outer):
            yield "language", plain + name.removeprefix(outer)


def place_of(config: Mapping[str, Any], name: str) -> Place | None:
    """The place of a stored name, None where the family of the config knows no such name."""
    try:
        return families.places(config, [name], "")[name]
    except CheckpointError:
        return None
