"""What `fuse inspect attention` found, in sentences. The thresholds are our choice; each sentence tells its number."""

from collections.abc import Mapping
from typing import Any

SAME, DIFFERENT = 0.05, 0.2  # Jensen-Shannon divergence: below, the same places; from there on, different ones
LITTLE = 0.05  # of an answer's attention; less on the image means that it hardly looked
FLAT = 0.01  # Jensen-Shannon divergence from attention that is spread evenly
# whose visual tokens are each made of the whole image
RESAMPLED = {"idefics2": "a perceiver resampler", "blip-2": "a Q-Former", "instructblip": "a Q-Former"}
WHOLE = 0.95  # of the image's area; with tokens of less than that, a part of a member's distances is what it cannot see
COARSE = 2  # times as many tokens as another: a part of their distance is the size of their cells
MOST = 3  # pairs that get a sentence each; of more, the closest and the farthest


def sentences(document: Mapping[str, Any]) -> list[str]:
    """The sentences of a document of `fuse inspect attention`, pairs first.

    Two members look at the same places below a Jensen-Shannon divergence of 0.05, at different ones from 0.2 on.
    """
    pairs = sorted(document["pairs"], key=lambda pair: pair["jensen_shannon"])
    found = [_pair(pair) for pair in pairs] if len(pairs) <= MOST else _ends(pairs)
    drawn = {name: one for name, one in document["members"].items() if one["map"] is not None}
    tokens = [one["tokens"] for one in drawn.values()]
    if len(drawn) > 1 and max(tokens) >= COARSE * min(tokens):
        found.append(
            f"The members have {min(tokens)} to {max(tokens)} visual tokens: coarser maps are flatter, which is a part "
            "of these distances."
        )
    for name, one in document["members"].items():
        found += _member(name, one)
    return found


def _pair(pair: Mapping[str, Any]) -> str:
    value = pair["jensen_shannon"]
    how = "look at the same places" if value < SAME else "look at different places" if value >= DIFFERENT else (
        "look at partly different places")  # fmt: skip
    return f"{pair['a']} and {pair['b']} {how} (Jensen-Shannon divergence {value:.3f})."


def _ends(pairs: list[Mapping[str, Any]]) -> list[str]:
    near, far = pairs[0], pairs[-1]
    apart = sum(pair["jensen_shannon"] >= DIFFERENT for pair in pairs)
    return [
        f"Closest: {_pair(near)}",
        f"Farthest: {_pair(far)}",
        f"{apart} of the {len(pairs)} pairs look at different places (Jensen-Shannon divergence {DIFFERENT} or more).",
    ]


def _no_map(one: Mapping[str, Any]) -> str:
    if not one["share"]:
        return "paid nothing to the image"
    if mixer := RESAMPLED.get(one["model_type"]):
        return f"looks through {mixer}, which makes each of its {one['tokens']} visual tokens of the whole image"
    return f"has {one['tokens']} visual tokens whose places on the image are not known"


def _member(name: str, one: Mapping[str, Any]) -> list[str]:
    found = []
    if one["share"] < LITTLE:
        found.append(f"{name} hardly looks at the image: {one['share']:.1%} of its attention.")
    if one["map"] is None:
        return [*found, f"{name} {_no_map(one)}, so it has no map and no distances."]
    if one["seen"] < WHOLE:
        found.append(
            f"{name} has visual tokens of {one['seen']:.0%} of the image only (a crop or a budget), which is a part of "
            "its distances."
        )
    if one["from_flat"] < FLAT:
        found.append(f"{name} looks at the whole image evenly ({one['from_flat']:.4f} from flat).")
    return found
