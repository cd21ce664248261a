"""Options of a branch among other branches: what stands before its tokens, where they stand, how long they are.

Needs no torch: the recipe, the plan, the config and the model agree on them here. None of this is in VisionFuse (arXiv
2412.01289), which only concatenates; the options and their rules are our choice.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.branches.native_table import MROPE_HOSTS

UNNUMBERED_HOSTS = frozenset({"t5"})  # their positions are distances
POSITIONS = ("continued", "shared")
NORMS = ("none", "match", "embeddings")
# what means nothing on the first branch of a prompt: option -> (value, or None for any; why)
NOT_FIRST: dict[str, tuple[str | None, str]] = {
    "separator": (None, "stands between two branches, and this is the first one"),
    "positions": ("shared", "shared takes the positions of the first branch, and this is the first one"),
    "norm": ("match", "match takes the norm of the first branch's tokens, and this is the first one"),
}


def why_not_first(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first of a first branch's options that means nothing there, and why; None where all do."""
    for option, (value, why) in NOT_FIRST.items():
        given = options.get(option)
        if given is not None and value in (None, given):
            return option, why
    return None


def no_shared_positions(host_type: str) -> str:
    """Why a host shares no positions, or ""."""
    if host_type in MROPE_HOSTS:
        why = "where an image's tokens stand at the rows and columns of its grid"
        return f"shared has no meaning on {host_type}, {why}"
    if host_type in UNNUMBERED_HOSTS:
        return f"shared has no meaning on {host_type}, which counts how far words stand apart and numbers none"
    return ""


def separator_ids(branch: Mapping[str, Any]) -> list[int]:
    """The tokens before a branch's block, from its entry in config.json: none where it has no separator."""
    return list((branch.get("separator") or {}).get("ids", ()))


def is_shared(branch: Mapping[str, Any]) -> bool:
    """Whether the branch's tokens stand at the positions of the first branch's."""
    return branch.get("positions") == "shared"


def tells_edges(branches: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the model has to know where every branch's block begins and ends, beside its visual tokens."""
    return any(separator_ids(branch) or is_shared(branch) for branch in branches)


def is_separator(value: Any, rows: int) -> bool:
    """Whether config.json says a separator as it should: a text, and the ids of its tokens, of which it has some."""
    if not isinstance(value, dict) or value.keys() != {"text", "ids"} or not isinstance(value["text"], str):
        return False
    ids = value["ids"]
    return isinstance(ids, list) and bool(ids) and all(type(token) is int and 0 <= token < rows for token in ids)
