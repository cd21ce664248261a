"""Which projections LoRA may change: the names of their modules, their sizes, and where each lies in a stored weight.

`qkv` and `gate_up` are the matrices of GPT-2 and Phi-3 that hold several projections.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

from fuse.families import Basis
from fuse.grafts.hosts import HOSTS, Stack, stacks_of

JOINT: Mapping[str, tuple[str, ...]] = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down", *JOINT)

# What multimodal classes, and models without a head, write before the names of a text-only checkpoint -> the latter.
_OUTER = (
    ("model.language_model.", "model."),
    ("language_model.", ""),
    ("h.", "transformer.h."),
    ("layers.", "model.layers."),
    ("decoder.layers.", "model.decoder.layers."),
)


def stacks(host: Basis) -> Mapping[str, Stack]:
    """The host's stacks by name; {} for an architecture that grafts do not attach to."""
    return stacks_of({"model_type": host.family, "feed_forward_proj": host.activation})


def place(module: str) -> tuple[str, int, str] | None:
    """(stack, block, projection) of a module by its name in any architecture, or None where it is no projection.

    `model.layers.3.self_attn.q_proj` is `("language", 3, "q")`.
    """
    for outer, inner in _OUTER:
        if module.startswith(outer):
            module = inner + module.removeprefix(outer)
            break
    found = re.search(r"\.(\d{1,4})\.", module)
    if found is None:
        return None
    row = _PLACES.get(f"{module[: found.start()]}|{module[found.end() :]}")
    return (row[0], int(found[1]), row[1]) if row else None


def _places() -> dict[str, tuple[str, str]]:
    gated = stacks_of({"model_type": "t5", "feed_forward_proj": "gated-gelu"})
    found: dict[str, tuple[str, str]] = {}
    for which, stack in [pair for held in (*HOSTS.values(), gated) for pair in held.items()]:
        joint = {path: name for name, parts in JOINT.items() for path, held in stack.fused.items() if held == parts}
        for linear, path in stack.linears.items():
            found[f"{stack.blocks}|{path}"] = (which, joint.get(path, linear))
    return found


_PLACES = _places()


def depth(host: Basis, stack: str) -> int:
    """How many blocks a stack of the host has."""
    return host.sizes["m"] if stack == "decoder" else host.layers


def has(stack: Stack, linear: str) -> bool:
    """Whether the stack has that projection, alone or inside a joint matrix."""
    return all(part in stack.linears for part in JOINT.get(linear, (linear,)))


def sizes(host: Basis, linear: str) -> tuple[int, int]:
    """(in, out) of one of the host's projections, or of a joint matrix that would hold them."""
    if linear in JOINT:
        return host.hidden_size, sum(sizes(host, part)[1] for part in JOINT[linear])
    inside = {"q": host.heads, "o": host.heads, "k": host.kv_heads, "v": host.kv_heads}
    size = inside[linear] * host.head_dim if linear in inside else host.intermediate_size
    return (size, host.hidden_size) if linear in {"o", "down"} else (host.hidden_size, size)


def parts(linear: str, inputs: int, outputs: int) -> dict[str, tuple[int, int]]:
    """The projections that a change goes over, and which of its outputs [begin, end) are theirs.

    A joint matrix gives as many queries as it takes numbers, as GPT-2's and Phi-3's do; keys and values share the rest.
    """
    if linear not in JOINT:
        return {linear: (0, outputs)}
    queries = inputs if linear == "qkv" else 0
    half = (outputs - queries) // 2
    edges = [0, queries, queries + half, outputs] if queries else [0, half, outputs]
    return dict(zip(JOINT[linear], pairwise(edges), strict=True))


def stored(host: Basis, stack: str, layer: int, part: str) -> tuple[str, tuple[int, int]]:
    """The weight that holds a projection (its canonical name), and which of its outputs [begin, end) are that one's."""
    table = stacks(host)[stack]
    path = table.linears[part]  # pyright: ignore[reportArgumentType]
    held = table.fused.get(path, (part,))
    begin = sum(sizes(host, other)[1] for other in held[: held.index(part)])
    return f"{table.blocks}.{layer}.{path}.weight", (begin, begin + sizes(host, part)[1])
