"""Which modules take their bridge into their own matrices, and what becomes of each tensor. Headers and JSON alone.

A module that reads the host through a linear layer without a norm in front, and writes through another, needs no bridge
beside it: W (down h + offset) + b = (W down) h + (b + W offset), and up (W x + b) = (up W) x + up b. What it gives are
changes of a state (`out`) or states themselves (`state`: slots, prompts, visual tokens), to which the map's offset
belongs. Behind a norm each token has a correction of its own, and the bridge stays.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fuse.anatomy import Member
from fuse.fused import FusedGraft, Turned
from fuse.grafts import lion_files
from fuse.grafts.basis import norm_of
from fuse.grafts.bridge_files import EMBEDDING, FINAL
from fuse.grafts.llama_adapter_files import prompted

LAST = {  # of projectors that end in a linear layer, what it is called
    "clipcap_mlp": "model.2", "lavin": "conv_B", "lion_aggregator": "adapter_proj.2", "lmeye": "imgLinear",
    "lmeye_blip2": "language_projection",
}  # fmt: skip
NORMED = "what it reads stands behind a norm, whose correction is another for every token"
Config = Mapping[str, Any]


def crossed(graft: FusedGraft) -> FusedGraft:
    """The graft with its bridge in its own tensors, or with the reason why the bridge stays (`Bridging.why`)."""
    assert graft.bridge is not None
    bridge, kind = graft.bridge.config, graft.kind
    if why := (_WHY[kind](graft.config, bridge) if kind in _WHY else NORMED):
        return replace(graft, bridge=replace(graft.bridge, why=why))
    config = _over(kind, graft.config, bridge)
    return replace(
        graft, config=config, made={}, turned=_TURNED[kind](graft.config, bridge),
        bridge=replace(graft.bridge, folded=True, why="", shapes={}),
    )  # fmt: skip


def _over(kind: str, config: Config, bridge: Config) -> dict[str, Any]:
    """The graft's config in the new host."""
    width = bridge["host_width"]
    if kind != "lion":
        return {**config, "hidden_size": width}
    onto = {side: list(bridge["stacks"][_stack(side, bridge)]["onto"]) for side in lion_files.sides(config)}
    same = all(blocks == list(range(len(blocks))) for blocks in onto.values())
    return {**config, "width": width, "onto": None if same else onto}


def _lion_why(config: Config, bridge: Config) -> str:
    del bridge
    if config["onto"]:
        return "its adapters do not stand one a block"
    if config["adapters"] != 1:
        return "its router weighs the channels of the host that it was cut from, until `fold: true` and a `task` end it"
    return "its adapters have norms of their own" if config["adapter_norm"] != "none" else ""


def _lion(config: Config, bridge: Config) -> dict[str, Turned]:
    found: dict[str, Turned] = {}
    for side in lion_files.sides(config):
        for layer in range(config["stacks"][side]):
            one, at = f"{side}.{layer}.adapters.0", (f"{_stack(side, bridge)}.{layer}.ffn",)
            found |= _reads(f"{one}.down_proj", at) | _changes(f"{one}.up_proj", at)
    return found | (_states(lion_files.HINT) if config["hint"] else {})


def _stack(side: str, bridge: Config) -> str:
    """The host's stack that a side of LION's adapters is heard in."""
    return side if side in bridge["stacks"] else "language"


def _lmeye_why(config: Config, bridge: Config) -> str:
    """The last hidden state stands behind a norm, and what crosses there is brought to the length that a norm gives:
    one number for all tokens where the map keeps lengths and the donor's norm takes no mean out."""
    del config
    if bridge["norm"] == "rms" and bridge["method"] != "ridge" and bridge["width"] >= bridge["host_width"]:
        return ""
    return "the last norm's correction is another for every token, as this map there does not keep lengths"


def _lmeye(config: Config, bridge: Config) -> dict[str, Turned]:
    del config, bridge
    return _states("embedding_imgd.weight") | _reads("llm2clip", (FINAL,)) | _changes("imgdLinear", (EMBEDDING,))


def _lmeye_blip2(config: Config, bridge: Config) -> dict[str, Turned]:
    del config, bridge
    slots = _states("instruction_embedding_imgd.weight") | _states("instruction_embedding_imgq.weight")
    return slots | _reads("instruction_blip22clip", (FINAL,)) | _changes("instruction_imgdLinear", (EMBEDDING,))


def _prompts_why(config: Config, bridge: Config) -> str:
    if config["visual"]:
        return "its visual prompts come out of a norm"
    onto = bridge["stacks"]["language"]["onto"]
    return "" if onto == list(range(len(onto))) else "the two hosts have other numbers of blocks"


def _prompts(config: Config, bridge: Config) -> dict[str, Turned]:
    """Prompts never change, so each is brought to where the host's own norm would have put it."""
    del bridge
    return {"query": Turned("state", tuple(f"language.{layer}.attention" for layer in prompted(config)), ("query",))}


_WHY: Mapping[str, Callable[[Config, Config], str]] = {
    "lion": _lion_why, "lmeye": _lmeye_why, "lmeye_blip2": _lmeye_why, "llama_adapter": _prompts_why,
}  # fmt: skip
_TURNED: Mapping[str, Callable[[Config, Config], dict[str, Turned]]] = {
    "lion": _lion, "lmeye": _lmeye, "lmeye_blip2": _lmeye_blip2, "llama_adapter": _prompts,
}  # fmt: skip


def _reads(name: str, at: tuple[str, ...]) -> dict[str, Turned]:
    weight, bias = f"{name}.weight", f"{name}.bias"
    return {weight: Turned("in", at, (weight,)), bias: Turned("in_bias", at, (weight, bias))}


def _changes(name: str, at: tuple[str, ...]) -> dict[str, Turned]:
    return {f"{name}.{part}": Turned("out", at, (f"{name}.{part}",)) for part in ("weight", "bias")}


def _states(name: str) -> dict[str, Turned]:
    return {name: Turned("state", (EMBEDDING,), (name,))}


def token_bridge(method: str, donor: Member, host: Member) -> dict[str, Any]:
    """The bridge of what gives visual tokens: one map, between the input embeddings of two language models."""
    return {
        "method": method, "width": donor.basis.hidden_size, "host_width": host.basis.hidden_size,
        "norm": norm_of(donor), "norm_eps": donor.basis.norm_eps or 1e-6, "host_norm": norm_of(host),
        "stacks": {}, "maps": [EMBEDDING], "normed": False,
    }  # fmt: skip


def projector_over(config: Config, width: int) -> tuple[dict[str, Any], dict[str, Turned]]:
    """The JSON of a branch whose projector gives the new host's `width` numbers, and what becomes of its tensors, by
    their names in the branch.

    config: the branch's JSON. The last linear layer gets a bias where it has none. Raises ValueError (a sentence
    about "it") for a projector whose tokens do not come out of a linear layer.
    """
    projector = config["projector"]
    if isinstance(projector, list):
        name = f"projector.{2 * (len(projector) - 1)}"
        layers = [*projector[:-1], {**projector[-1], "out": width, "bias": True}]
        return {**config, "projector": layers}, _gives(name, has_bias=projector[-1]["bias"])
    kind = projector["kind"]
    if kind not in LAST:
        raise ValueError(f"a projector of kind {kind} does not end in a linear layer")
    name = f"projector.{LAST[kind]}"
    told = {**config, "projector": {"kind": kind, "config": {**projector["config"], "hidden_size": width}}}
    if kind == "lmeye":  # which adds an offset
        return told, _changes(name, (EMBEDDING,)) | _states("projector.embedding_img.weight")
    return told, _gives(name, has_bias=True)


def _gives(name: str, has_bias: bool) -> dict[str, Turned]:
    """A linear layer that gives states."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    return {
        weight: Turned("out", (EMBEDDING,), (weight,)),
        bias: Turned("state", (EMBEDDING,), (bias,) if has_bias else ()),
    }
