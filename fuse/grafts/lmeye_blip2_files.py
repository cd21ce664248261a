"""What is known of LMEye's second generation from its config alone: the network that looks through a Q-Former
(arXiv 2305.03701 version 6; Lmeye/lmeye_model.py).

config: `hidden_size` (d), `width` (of the CLIP's text tower, c), `features` (width of the Q-Former's output, w),
`requests` (r, as many as there are slots), `place` and `clip` as in the first generation.
"""

from collections.abc import Mapping
from typing import Any

from fuse.grafts import lmeye_files as first
from fuse.grafts.lmeye_files import OPTIONS, SLOTS, configured, why_not

__all__ = ["OPTIONS", "SLOTS", "behind", "configured", "shapes", "tokens", "why_no_image", "why_not"]

PROJECTOR = "lmeye_blip2"  # kind
NUMBERS = ("hidden_size", "width", "features", "requests")


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of graft.safetensors. Raises KeyError and ValueError for a config that is none."""
    d, c, w, r = first.numbers(config, NUMBERS)
    return {
        "instruction_embedding_imgd.weight": (1, d),
        "instruction_embedding_imgq.weight": (1, d),
        **first.linear("instruction_blip22clip", d, r * c),
        **first.linear("instruction_linear", w, c),
        **first.linear("instruction_imgdLinear", c, d),
        **first.clip_shapes(config["clip"], c),
    }


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """One request and its slots behind every image; none where they stand behind the question."""
    counts = {"imgq": 1, "imgd": config["requests"]}
    return counts if config["place"] == "image" else dict.fromkeys(counts, 0)


def behind(config: Mapping[str, Any], images: int, written: Mapping[str, str]) -> str:
    """As in the first generation; the request stands before its slots."""
    one = written["imgq"] + written["imgd"] * config["requests"]
    return "" if config["place"] != "question" else " " + one * images


def why_no_image(config: Mapping[str, Any], branch: Mapping[str, Any]) -> str:
    """Why the network cannot look through a branch; "" where it can."""
    projector = branch.get("projector")
    if not isinstance(projector, Mapping) or projector.get("kind") != PROJECTOR:
        return "it has no Q-Former, as `fuse import lmeye` makes one of the second generation"
    wide, taken = projector["config"]["width"], config["features"]
    return "" if wide == taken else f"its Q-Former is {wide} wide, and the network takes {taken}"
