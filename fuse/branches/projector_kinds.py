"""Projectors that are more than a file of linear layers: what each reads of its encoder, and where it is made.

A projector folder holds `projector.json` ({"format": 1, "kind", "config", "host", "source"}) and
`projector.safetensors`, whose names are those of the module's state dict. A kind is two modules of `fuse.branches`. One
knows its files and imports no torch:

    def reads(config) -> Reads                    what it reads of the encoder (fuse.branches.encoder_reads)
    def shapes(config) -> dict[str, tuple]        every tensor of projector.safetensors
    def widths(config) -> tuple[int, int]         numbers of one feature that it reads, and of one token that it gives
    def tokens(config, given: int) -> int         visual tokens of one image; given: how many features it reads (tokens
                                                  of one block for `blocks`); 0: none, it only passes features on

and raises KeyError, TypeError or ValueError for a config that is none. The other has the module, `Projector(config)`,
with `forward(features) -> [B, tokens, D]`, features in a shape of `Reads`, in the branch's dtype. Where it has `look`,
`forward` is given what `look(features)` makes of them, and so are grafts. Its parameters are created with torch.empty:
it is built on meta.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fuse.branches.encoder_reads import Reads, reads_of
from fuse.errors import CheckpointError
from fuse.suggest import did_you_mean


@dataclass(frozen=True)
class Kind:
    """files: the module that needs no torch. build: module and class of the projector."""

    files: str
    build: str


PROJECTORS: dict[str, Kind] = {
    "clipcap_mlp": Kind("clipcap_mlp_files", "clipcap.MlpMapper"),
    "clipcap_transformer": Kind("clipcap_transformer_files", "clipcap.TransformerMapper"),
    "lavin": Kind("lavin_projector_files", "lavin_projector.LavinProjector"),
    "lion_aggregator": Kind("lion_aggregator_files", "lion_aggregator.LionAggregator"),
    "llama_adapter": Kind("llama_adapter_projector_files", "llama_adapter_projector.LlamaAdapterProjector"),
    "lmeye": Kind("lmeye_projector_files", "lmeye_projector.LmeyeProjector"),
    "lmeye_blip2": Kind("lmeye_blip2_projector_files", "lmeye_blip2_projector.LmeyeBlip2Projector"),
}


@dataclass(frozen=True)
class Described:
    """A projector of a kind, known from its config alone. width: numbers of one feature. hidden_size: of one token."""

    kind: str
    config: Mapping[str, Any]
    reads: Reads
    shapes: Mapping[str, tuple[int, ...]]
    width: int
    hidden_size: int

    def tokens(self, given: int) -> int:
        """Visual tokens of one image whose encoder gives so many features."""
        return import_module(f"fuse.branches.{PROJECTORS[self.kind].files}").tokens(self.config, given)


def describe(kind: Any, config: Any, where: object) -> Described:
    """A projector from the `kind` and `config` of its JSON. Raises CheckpointError for what is no projector."""
    if not isinstance(kind, str) or kind not in PROJECTORS:
        raise CheckpointError(
            f"projector kind {kind!r} is not one that fuse knows", where=where, hint=did_you_mean(str(kind), PROJECTORS)
        )
    if not isinstance(config, Mapping):
        raise CheckpointError(f"config of the projector is {config!r}, not an object", where=where)
    files = import_module(f"fuse.branches.{PROJECTORS[kind].files}")
    try:
        reads, (width, hidden_size), shapes = files.reads(config), files.widths(config), files.shapes(config)
    except KeyError as error:
        raise CheckpointError(f"config of the {kind} projector has no {error.args[0]}", where=where) from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config of the {kind} projector: {str(error)[:200]}", where=where) from None
    return Described(kind, config, reads_of(reads.what, reads.layers, where), shapes, width, hidden_size)


def build_projector(kind: str, config: Mapping[str, Any]) -> Any:
    """The module of a projector that `describe` accepted."""
    module, _, name = PROJECTORS[kind].build.rpartition(".")
    return getattr(import_module(f"fuse.branches.{module}"), name)(config)
