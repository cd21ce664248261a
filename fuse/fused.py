"""What a plan knows of a fused folder: branches, grafts, placeholders, and what lends tensors besides the members."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fuse.adapters.folder import fetch_adapter
from fuse.anatomy import Member
from fuse.checkpoint import Checkpoint, fetch
from fuse.grafts.donor import Donor
from fuse.safetensors_header import TensorEntry

LANGUAGE, BRANCHES, GRAFTS = "language_model.", "branches.", "grafts."


@dataclass(frozen=True)
class Lender:
    """Tensors of a branch that no member holds: a tower of an original-LLaVA member, the files of an encoder branch.

    places: stored key -> canonical name under the branch. dropped: stored key -> why it goes nowhere. Together they
    hold every tensor. checkpoint: set where the files may still have to be fetched, which `bring` does.
    """

    name: str
    origin: str
    tensors: Mapping[str, TensorEntry]
    places: Mapping[str, str]
    dropped: Mapping[str, str]
    checkpoint: Checkpoint | None = None
    bring: Callable[[Checkpoint, Collection[TensorEntry] | None], None] = fetch

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the output reads: none where nothing is lent after all."""
        return tuple(sorted({self.tensors[key].file for key in self.places}))

    def fetch(self, wanted: Collection[TensorEntry] | None = None) -> None:
        """Bring the weights to this machine, where they are not; wanted as `fuse.checkpoint.fetch` has it."""
        if self.checkpoint is not None and self.places:
            self.bring(self.checkpoint, wanted)


def adapter_lenders(members: Sequence[Member]) -> list[Lender]:
    """The members' adapters, with the tensor of the member that each of theirs changes or is."""
    return [
        Lender(
            a.name, a.checkpoint.origin, a.checkpoint.tensors, {**a.targets, **a.whole}, a.unused, a.checkpoint,
            fetch_adapter,
        )
        for a in (member.adapter for member in members) if a is not None
    ]  # fmt: skip


@dataclass(frozen=True)
class FusedBranch:
    """One branch: whose eyes, of which kind, and its token budget.

    config: the branch's JSON. folders: where, besides the member's, a preprocessor_config.json may lie. grid: rows and
    columns of an encoder branch's visual tokens, where its files tell them. separator, positions, norm: as the recipe
    says them. shares: the weights of its projectors, where several are averaged; their lenders come in that order.
    bridge: how its projector is brought over from another basis, and turned what that makes of its tensors, by
    canonical name.
    """

    name: str
    kind: str
    member: Member | None
    config: Mapping[str, Any]
    max_tokens: int | None = None
    prune: str = "pool"
    lenders: tuple[Lender, ...] = ()
    folders: tuple[Path, ...] = ()
    grid: tuple[int, int] | None = None
    separator: str | None = None
    positions: str = "continued"
    norm: str = "none"
    shares: tuple[float, ...] = ()
    bridge: "Bridging | None" = None
    turned: Mapping[str, "Turned"] = field(default_factory=dict)

    @property
    def token(self) -> str:
        """The placeholder that stands for one visual token of this branch."""
        return f"<|fuse:{self.name}|>"

    @property
    def prefix(self) -> str:
        return f"{BRANCHES}{self.name}."


@dataclass(frozen=True)
class Bridging:
    """How a graft is brought over from another basis.

    config: the bridge's, and shapes those of its tensors, as `fuse.grafts.bridge_files` makes them. host: the language
    model that the graft was cut from. texts: what both language models read, and sha256 that of their file. least: R2
    that every map must have. folded: it is part of what it brings over; else why says why it stays beside it. whole:
    language models run to fit it; else it is fitted to their embeddings alone.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    host: Member
    texts: tuple[str, ...]
    sha256: str
    least: float
    folded: bool = False
    why: str = ""
    whole: bool = True


@dataclass(frozen=True)
class Turned:
    """What a folded bridge makes of one tensor.

    role: a matrix that reads states (`in`) and the bias behind it (`in_bias`), what writes changes of states (`out`),
    states themselves (`state`). at: the maps. reads: the tensors that it is made of, by their names without the bridge.
    """

    role: Literal["in", "in_bias", "out", "state"]
    at: tuple[str, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """How well one map does on pairs that it was not fitted to: `read` is R2 of the donor's states from the new host's,
    `write` R2 of the other way. pairs: how many it was fitted to."""

    name: str
    read: float
    write: float
    pairs: int

    @property
    def r2(self) -> float:
        return min(self.read, self.write)


Fits = Mapping[str, Sequence[Fit]]  # by graft or branch


@dataclass(frozen=True)
class FusedGraft:
    """One graft of the output.

    config: what its module is built from. tokens: its placeholders, name -> how many follow every image. made: tensors
    that no donor holds and the merge computes, with their shapes. joined: of a graft that a fold made smaller, the
    donor's tensors that each of its tensors is made of, and unfolded what its config was; nothing is copied then.
    options: the recipe's keys of its kind. turned: tensors that a folded bridge is in.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    scale: float
    tower: str | None
    image: str | None
    tokens: Mapping[str, int]
    donor: Donor
    lender: Lender
    made: Mapping[str, tuple[int, ...]]
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unfolded: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    bridge: Bridging | None = None
    turned: Mapping[str, Turned] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return f"{GRAFTS}{self.name}."

    def token(self, name: str) -> str:
        """The placeholder of that name as the tokenizer knows it."""
        return f"<|fuse:{self.name}.{name}|>"

    @property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(self.token(name) for name in self.tokens)


@dataclass(frozen=True)
class FoldedGraft:
    """A graft that became part of the host's own weights.

    graft: what it was; where a part of it is still heard, a graft of that name with that part is in `Fused`. changes:
    what the host's text config says after it, and did not before. whole: to fold it, the host is run as a whole.
    """

    graft: FusedGraft
    changes: Mapping[str, Any]
    whole: bool = False


@dataclass(frozen=True)
class Fused:
    """The fused side of a plan.

    image_token: what the chat template writes for one image; its id is None where there is no branch. ids: the row of
    each placeholder, by token.
    silent: ids that generation never samples. separators: the ids of each separator, by branch.
    """

    branches: tuple[FusedBranch, ...]
    host_type: str
    image_token: str
    image_token_id: int | None
    ids: Mapping[str, int] = field(default_factory=dict)
    silent: tuple[int, ...] = ()
    separators: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    grafts: tuple[FusedGraft, ...] = ()

    @property
    def lenders(self) -> tuple[Lender, ...]:
        return (*(lender for branch in self.branches for lender in branch.lenders), *(g.lender for g in self.grafts))
