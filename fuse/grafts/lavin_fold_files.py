"""Which tensors of a host LaVIN's adapters are folded into, told from JSON alone. Needs no torch.

An adapter whose route is fixed is linear: x -> x + up(down(x)) + shift. So every matrix that reads its norm takes it
in, the shift in its bias (`fuse.grafts.lavin_fold`). A host without biases there needs a config that switches them on;
what else that switch asks for is zeros.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fuse.grafts.hosts import Linear, stacks_of
from fuse.grafts.lavin_files import NORMS, PLACES, has_language, tower_of

_READERS: Mapping[str, tuple[Linear, ...]] = {
    "attention": ("q", "k", "v"),
    "ffn": ("gate", "up"),
}  # norm -> the projections that read it


@dataclass(frozen=True)
class Biases:
    """How a host gets biases behind a norm: the config's switch, and projections whose biases it brings, too."""

    switch: str = ""
    zeros: tuple[Linear, ...] = ()


# model_type -> norm -> its biases; a norm that is not named has readers without any
BIASES: Mapping[str, Mapping[str, Biases]] = {
    "llama": {"attention": Biases("attention_bias", ("o",)), "ffn": Biases("mlp_bias", ("down",))},
    "qwen2": {"attention": Biases()},
    "qwen3": {"attention": Biases("attention_bias", ("o",))},
    "gemma": {"attention": Biases("attention_bias", ("o",))},
    "gpt2": {"attention": Biases(), "ffn": Biases()},
    "opt": {"attention": Biases(), "ffn": Biases()},
}


@dataclass(frozen=True)
class Fold:
    """layer, place: of `routes`. adapter: its name in graft.safetensors, None where a new bias is zeros.

    weight: the matrix that reads the norm, as the host names it; transposed: it is stored as [in, out].
    """

    layer: int
    place: int
    adapter: str | None
    weight: str
    transposed: bool


def why_no_fold(config: Mapping[str, Any], host: Mapping[str, Any]) -> str:
    """One sentence why the adapters cannot be folded into a host, or "". host: its (text) config, as config.json holds
    it.
    """
    kind = str(host.get("model_type"))
    if not has_language(config):
        return "a vision tower's adapters stay: their routes follow every token"
    if config.get("modality", "auto") == "auto":
        return "a fold knows one route: say `modality: image` or `modality: text`"
    if not stacks_of(host):
        return f"{kind} has no table of slots"
    if kind == "opt" and not host.get("enable_bias", True):
        return "the adapters bring biases, and this opt has none"
    for place in PLACES[config["adapter_type"]]:
        if NORMS[place] not in BIASES.get(kind, {}):
            return f"the adapters bring biases, and {kind} has none behind the {NORMS[place]} norm"
    return ""


def folds(config: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Fold]:
    """Every tensor of the host that is changed or new, by its name, where `why_no_fold` found nothing."""
    return dict(_folds(config, host))


def _folds(config: Mapping[str, Any], host: Mapping[str, Any]) -> Iterator[tuple[str, Fold]]:
    (stack,) = stacks_of(host).values()
    kind = str(host["model_type"])
    for layer in range(config["layers"]):
        for place, adapter in enumerate(PLACES[config["adapter_type"]]):
            norm = NORMS[adapter]
            for path in dict.fromkeys(stack.linears[name] for name in _READERS[norm] if name in stack.linears):
                matrix = f"{stack.blocks}.{layer}.{path}"
                fold = Fold(layer, place, f"layers.{layer}.{adapter}", f"{matrix}.weight", kind == "gpt2")
                yield f"{matrix}.weight", fold
                yield f"{matrix}.bias", fold
            biases = BIASES[kind][norm]
            if biases.switch and not host.get(biases.switch, False):
                for name in biases.zeros:
                    matrix = f"{stack.blocks}.{layer}.{stack.linears[name]}"
                    yield f"{matrix}.bias", Fold(layer, place, None, f"{matrix}.weight", False)


def host_config(config: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """What the host's config says after the fold, and did not before."""
    norms = (NORMS[place] for place in PLACES[config["adapter_type"]])
    switches = [BIASES[str(host["model_type"])][norm].switch for norm in norms]
    return {switch: True for switch in switches if switch and not host.get(switch, False)}


def what_stays(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of the graft that is left after the fold: a vision tower's adapters. None where nothing is left."""
    return {**config, "parts": "tower"} if tower_of(config) else None
