"""What the members of pairs see alike: the parts of a score that are measured on images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.align.encoders.compare import Options, compare_encoders
from fuse.align.features.images import image_files
from fuse.align.features.open import open_encoders
from fuse.align.pairs import compatibility
from fuse.align.pairs.compatibility import NEW, Part
from fuse.align.pairs.members import One
from fuse.errors import RecipeError

NO_IMAGES = "no --images were given"


@dataclass(frozen=True)
class Seen:
    """document: of `fuse inspect encoders`, None where fewer than two looked. labels: their names in it. unseen: why a
    member that sees did not look."""

    document: dict[str, Any] | None
    labels: Mapping[str, str]
    unseen: Mapping[str, str]


def look(members: Sequence[One], images: Path | None, options: Options) -> Seen:
    """Let the members that see look at the images. Raises what `compare` raises, but for encoders that fuse cannot
    inspect, which are told."""
    if images is None:
        return Seen(None, {}, {})
    image_files(images)  # before anything is loaded
    encoders, names, unseen = [], [], {}
    for one in members:
        if one.member.sees:
            try:
                encoders += open_encoders(one.location)
                names.append(one.name)
            except RecipeError as error:
                unseen[one.name] = error.problem
    if len(encoders) < 2:
        return Seen(None, {}, unseen)
    document = compare_encoders(encoders, images, options).document
    return Seen(document, dict(zip(names, document["members"], strict=True)), unseen)


def parts_seen(a: One, b: One, seen: Seen) -> dict[str, Part]:
    """space and new."""
    blind = [one.name for one in (a, b) if not one.member.sees]
    unseen = [f"{one.name}: {seen.unseen[one.name]}" for one in (a, b) if one.name in seen.unseen]
    if blind or unseen or seen.document is None:
        nothing = f"{' and '.join(blind)} {'sees' if len(blind) == 1 else 'see'} nothing" if blind else ""
        return dict.fromkeys(("space", NEW), Part(None, nothing or "; ".join(unseen) or NO_IMAGES))
    names = {seen.labels[one.name] for one in (a, b)}
    pair = next(pair for pair in seen.document["pairs"] if {pair["a"], pair["b"]} == names)
    place: Mapping[str, Any] = pair["projector"] or {"values": {}, "unmeasured": {}}
    why = place["unmeasured"].get("cosine_of_means", "has no projector")
    encoder = pair["encoder"]
    return {
        "space": compatibility.space(place["values"].get("cosine_of_means"), place.get("embeddings_cosine"), why),
        NEW: compatibility.new(encoder["values"].get("cka"), encoder["unmeasured"].get("cka", "")),
    }
