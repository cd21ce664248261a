"""Bridges, without weights: what may cross to another basis, which maps it needs, and how their tensors are called.

A graft that was cut from one language model (the donor's host) reads and writes along that model's axes. In another
host it is surrounded by maps: `down` brings what it reads into the donor's basis, `up` brings what it writes back. The
graft itself stays as it is. Projections and norms of a host have axes of their own, so grafts that change single
projections or norms cannot cross.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse import families
from fuse.anatomy import Member
from fuse.grafts.basis import norm_of
from fuse.grafts.hosts import stacks_of, why_no_slots

METHODS = ("procrustes", "ridge", "embedding")
LEAST_R2 = 0.5
EMBEDDING, FINAL = "embedding", "final"


@dataclass(frozen=True)
class Crossing:
    """What a graft needs of a bridge.

    places: by the norms of a block, where it reads or writes (`attention`, `ffn`). layers: which blocks, counted over
    all stacks as the kind counts them; None for all. embedding: it reads or writes input embeddings. final: it reads
    the last hidden state. normed: it reads behind norms.
    """

    places: tuple[str, ...] = ()
    layers: frozenset[int] | None = None
    embedding: bool = False
    final: bool = False
    normed: bool = True


def crossing(kind: str, config: Mapping[str, Any]) -> Crossing:
    """What a graft needs. Raises ValueError (a sentence about "it") for one that cannot cross to another basis."""
    if kind == "lora" or (kind == "llama_adapter" and (_changes(config) or config.get("norms"))):
        raise ValueError("it changes single projections or norms of its host, which no bridge maps")
    if kind == "mks2" and (config.get("lora") or {}).get("mlp"):
        raise ValueError("it changes single projections of its host's MLP, which no bridge maps")
    if kind == "mks2":
        return Crossing(("ffn",), frozenset(config["layers"]), normed=config["norm"] == "host")
    if kind == "lion":
        return Crossing(("ffn",), embedding=bool(config.get("hint")), normed=False)
    if kind == "lavin":
        places = ("attention", "ffn") if config.get("adapter_type") == "block" else ("attention",)
        return Crossing(places, embedding=True)
    if kind == "llama_adapter":
        depth = config["depth"]
        return Crossing(("attention",), frozenset(range(depth - config["rows"] // config["length"], depth)))
    if kind in ("lmeye", "lmeye_blip2"):
        return Crossing(embedding=True, final=True)
    raise ValueError(f"nothing is known of how a graft of kind {kind} crosses to another basis")


def _changes(config: Mapping[str, Any]) -> bool:
    return any(row.get("rank") or row.get("bias") for row in (config.get("linears") or {}).values())


def bridge_config(kind: str, config: Mapping[str, Any], method: str, donor: Member, host: Member) -> dict[str, Any]:
    """The bridge of a graft as config.json holds it.

    donor: the language model that it was cut from; host: the new one. `stacks` says for each stack how many blocks the
    donor's host has, and `onto` which block of the new host stands for each: the one at the nearest relative depth (our
    choice). `maps` are the names of all maps. Raises ValueError for what cannot cross.
    """
    needs = crossing(kind, config)
    if kind == "llama_adapter" and host.basis.heads != config["heads"]:
        raise ValueError(f"it has gates for {config['heads']} heads, and {host.name} has {host.basis.heads}")
    for member in (donor, host):
        if why := why_no_slots(_text(member)):
            raise ValueError(why)
    theirs, ours = depths(donor), depths(host)
    if theirs.keys() != ours.keys():
        told = " and ".join(theirs), " and ".join(ours)
        raise ValueError(f"its host has the stacks {told[0]}, and {host.name} has {told[1]}")
    stacks = {name: {"layers": depth, "onto": layer_map(depth, ours[name])} for name, depth in theirs.items()}
    return {
        "method": method, "width": donor.basis.hidden_size, "host_width": host.basis.hidden_size,
        "norm": norm_of(donor), "norm_eps": donor.basis.norm_eps or 1e-6, "host_norm": norm_of(host),
        "stacks": stacks, "maps": _maps(needs, theirs), "normed": needs.normed,
    }  # fmt: skip


def _maps(needs: Crossing, depths: Mapping[str, int]) -> list[str]:
    blocks = [(stack, layer) for stack, depth in depths.items() for layer in range(depth)]
    used = [block for number, block in enumerate(blocks) if needs.layers is None or number in needs.layers]
    names = [f"{stack}.{layer}.{place}" for stack, layer in used for place in needs.places]
    return [*names, *[EMBEDDING] * needs.embedding, *[FINAL] * needs.final]


def depths(member: Member) -> dict[str, int]:
    """How many blocks each stack of a language model has."""
    numbers = {"decoder": member.basis.sizes.get("m", member.basis.layers)}
    return {name: numbers.get(name, member.basis.layers) for name in stacks_of(_text(member))}


def _text(member: Member) -> dict[str, Any]:
    config, where = member.checkpoint.config, str(member.folder)
    kind = families.text_type_of(config, member.family, where)
    return {**families.text_config(config, member.family, where), "model_type": kind}


def layer_map(layers: int, onto: int) -> list[int]:
    """For each of `layers` blocks the one of `onto` at the nearest relative depth: the first on the first, the last on
    the last."""
    return [round(layer * (onto - 1) / (layers - 1)) if layers > 1 else onto - 1 for layer in range(layers)]


def is_layer(name: str) -> bool:
    """Whether a map belongs to a block."""
    return name not in (EMBEDDING, FINAL)


def is_shared(bridge: Mapping[str, Any], name: str) -> bool:
    """Whether a block's map takes the matrix of the embedding: method `embedding`."""
    return bridge["method"] == "embedding" and name != EMBEDDING


def has_gains(bridge: Mapping[str, Any], name: str) -> bool:
    """Whether a map knows the norms of both sides."""
    return name == FINAL or (is_layer(name) and bool(bridge["normed"]))


def shapes(bridge: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a bridge, under `bridge.`, with its shape.

    `down` [d, D] and `offset` [d] bring the new host's D numbers to the donor's d. With `ridge` `up` [D, d] and
    `up_offset` [D] go back; else `size` [1], as `up` then is down's transpose divided by size squared. `gain` and
    `bias` are the norm of the donor's host, `host_gain` and `host_bias` that of the new one.
    """
    d, big = int(bridge["width"]), int(bridge["host_width"])
    matrix = {"down": (d, big), "offset": (d,)}
    back: dict[str, tuple[int, ...]] = (
        {"up": (big, d), "up_offset": (big,)} if bridge["method"] == "ridge" else {"size": (1,)}
    )
    found: dict[str, tuple[int, ...]] = {}
    names = list(bridge["maps"])
    if bridge["method"] == "embedding" and EMBEDDING not in names:
        names.append(EMBEDDING)
    for name in names:
        tensors = {} if is_shared(bridge, name) else {**matrix, **back}
        if has_gains(bridge, name):
            tensors |= {"gain": (d,)} | ({"bias": (d,)} if bridge["norm"] == "layer" else {})
            tensors |= {"host_gain": (big,)} | ({"host_bias": (big,)} if bridge["host_norm"] == "layer" else {})
        found |= {f"bridge.{name}.{key}": shape for key, shape in tensors.items()}
    return found
