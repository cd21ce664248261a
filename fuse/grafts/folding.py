"""What grafts become when they are folded into a host's own weights, told from headers and JSON. Needs no torch.

A fold is exact: the native weights compute what host and graft computed together (`fuse.engine.fold` makes them). LoRA
is added to the weights that it changes; a memory of MKS2 with a constant share is more units of the MLP; LaVIN's
adapters with fixed routes are linear and go into what reads their norm. They are folded in this order, whatever the
recipe's, so that each meets the tensors that it would have met as a graft: LoRA's projections have the host's sizes,
and LaVIN's adapters stand before everything that reads their norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fuse.families import Basis, TextFamily
from fuse.fused import FusedGraft
from fuse.grafts import lavin_files, lavin_fold_files, lion_files, lora_files, mks2_wider

ORDER = ("lora", "mks2", "lavin")  # kinds that become part of the host
STAYS = frozenset({"lion"})  # kinds of which a smaller graft is left
WHOLE = frozenset({"lavin"})  # kinds that run the host to know what they become
NEVER: Mapping[str, str] = {
    "llama_adapter": "each token weighs its prompts by a softmax of its own",
    "lmeye": "it reads a prompt twice, and what it writes there hangs on the image",
    "lmeye_blip2": "it reads a prompt twice, and what it writes there hangs on the image",
}
_MODALITY = "adapter_modality_embedding.weight"
_BEFORE_BLOCKS = frozenset({"two_pass", "input_embeds"})  # slots outside the blocks of the language model


@dataclass(frozen=True)
class Host:
    """A language model as it is before a fold: its numbers, its text config, its tensors' shapes by canonical name."""

    text: TextFamily
    basis: Basis
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def after(self, changed: "Changed") -> "Host":
        """The host with what a fold made of it."""
        size = changed.config.get(size_key(self.text), self.basis.intermediate_size)
        basis = replace(self.basis, intermediate_size=size)
        shapes = {**self.shapes, **{name: change.shape for name, change in changed.tensors.items()}}
        return Host(self.text, basis, {**self.config, **changed.config}, shapes)


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor of the host.

    what: as the kind's own function of tensors reads it. donors: names in graft.safetensors. shape: afterwards. host:
    canonical names of the host's tensors that it is computed from; a new tensor stands behind the first of them.
    """

    what: Any
    donors: tuple[str, ...]
    shape: tuple[int, ...]
    host: tuple[str, ...]


@dataclass(frozen=True)
class Changed:
    """Every tensor of the host that a fold changes or adds, and the keys of the text config that change with them."""

    tensors: Mapping[str, Change]
    config: Mapping[str, Any]


def changed(graft: FusedGraft, host: Host) -> Changed:
    """What folding a graft of a kind of ORDER does. Raises ValueError with the reason where it would not be exact."""
    return {"lora": _lora, "mks2": _mks2, "lavin": _lavin}[graft.kind](graft, host)


def _lora(graft: FusedGraft, host: Host) -> Changed:
    found = lora_files.folds(graft.config, host.basis, graft.scale)
    return Changed(
        {
            name: Change(changes, tuple(n for c in changes for n in (c.down, c.up)), host.shapes[name], (name,))
            for name, changes in found.items()
        },
        {},
    )


def _mks2(graft: FusedGraft, host: Host) -> Changed:
    if why := mks2_wider.why_no_fold(graft.config, host.basis, host.shapes):
        raise ValueError(f"it {why}")
    found = mks2_wider.folds(graft.config, host.basis, graft.scale, host.shapes)
    return Changed(
        {
            name: Change(wide, _units(wide, graft), mks2_wider.shape(host.shapes[name], wide), (name,))
            for name, wide in found.items()
        },
        {size_key(host.text): mks2_wider.wider(graft.config, host.basis)},
    )


def _units(wide: mks2_wider.Wide, graft: FusedGraft) -> tuple[str, ...]:
    """The memory's tensors that become part of one of the host's, and the router that says how loud."""
    parts = [f"{part}.{'bias' if wide.bias else 'weight'}" for part, *_ in wide.parts]
    names = [f"layers.{wide.layer}.{name}" for name in (*parts, *(["router.weight", "router.bias"] * wide.routed))]
    return tuple(name for name in names if name in graft.donor.tensors)


def _lavin(graft: FusedGraft, host: Host) -> Changed:
    if why := lavin_fold_files.why_no_fold(graft.config, host.config):
        raise ValueError(why)
    fixed = {key: graft.config[key] for key in ("modality", "temperature", "rounding")}
    loud = graft.scale * graft.config["adapter_scale"]
    found = {}
    for name, fold in lavin_fold_files.folds(graft.config, host.config).items():
        donors = [n for n in graft.donor.tensors if fold.adapter and n.startswith(f"{fold.adapter}.")]
        shape = host.shapes[fold.weight]
        if name != fold.weight:
            shape = (shape[1] if fold.transposed else shape[0],)
        reads = (fold.weight, *([name] if name != fold.weight and name in host.shapes else []))
        found[name] = Change([fold, loud, fixed], (*donors, *([_MODALITY] if donors else [])), shape, reads)
    return Changed(found, lavin_fold_files.host_config(graft.config, host.config))


def size_key(text: TextFamily) -> str:
    """What the text config calls the size of the MLP."""
    return text.keys.get("intermediate_size", "intermediate_size")


def left_of(
    graft: FusedGraft, said: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]] | None:  # fmt: skip
    """The config of the graft that is left after the fold, and the tensors that are made of several of the donor's.

    None where nothing is left. said: the options that the recipe states. Raises ValueError with the reason where a
    graft that stays does not become smaller.
    """
    if graft.kind == "lion":
        config = lion_files.folded(graft.config)
        if "task" not in said:
            raise ValueError("a fold knows one task: say `task: image` or `task: region`")
        return config, {name: lion_files.fold_sources(graft.config, name) for name in lion_files.shapes(config)}
    left = lavin_fold_files.what_stays(graft.config) if graft.kind == "lavin" else None
    return None if left is None else (left, {})


def why_not_beside(folded: FusedGraft, other: FusedGraft, before: bool, after: Host) -> str:
    """Why a graft cannot be folded where another is heard beside the host, or "".

    A graft that was folded is there before all that are heard. before: the other stands before it in the recipe. after:
    the host with it.
    """
    if folded.kind == "lavin" and _in_blocks(other):
        return f"its routes are those of a host without {other.name}"
    if folded.kind == "lora" and other.kind == "llama_adapter" and _gives_keys(folded.config):
        return f"the prompts of {other.name} go through the host's keys and values without it"
    if folded.kind == "mks2":
        if why := other.donor.files.why_not(other.config, after.basis):
            return f"the host that it would make {why}"
        adds = other.kind == "lion" or other.config.get("place") == "beside"
        both = adds and folded.config["place"] == "beside"
        if before and "ffn_residual" in other.donor.files.SLOTS and not both:
            return f"{other.name} comes before it, and one of them takes from what the other left"
    return ""


def _in_blocks(graft: FusedGraft) -> bool:
    """Whether a graft is heard in the blocks of the language model."""
    if graft.kind == "lavin":
        return lavin_files.has_language(graft.config)
    return not _BEFORE_BLOCKS.issuperset(graft.donor.files.SLOTS)


def _gives_keys(config: Mapping[str, Any]) -> bool:
    """Whether a LoRA changes keys or values."""
    return any(lora_files.split(name)[2] in {"k", "v", "qkv"} for name in config["modules"])
