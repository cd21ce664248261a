"""What a plan knows of a fused folder: its branches, their placeholders, and what lends tensors besides the members."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuse.anatomy import Member
from fuse.checkpoint import Checkpoint, fetch
from fuse.safetensors_header import TensorEntry

LANGUAGE, BRANCHES = "language_model.", "branches."


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
    bring: Callable[[Checkpoint], None] = fetch

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the output reads: none where nothing is lent after all."""
        return tuple(sorted({self.tensors[key].file for key in self.places}))

    def fetch(self) -> None:
        """Bring the weights to this machine, where they are not."""
        if self.checkpoint is not None and self.places:
            self.bring(self.checkpoint)


@dataclass(frozen=True)
class FusedBranch:
    """One branch: whose eyes, of which kind, and its token budget.

    config: the branch's JSON. folders: where, besides the member's, a preprocessor_config.json may lie. grid: rows and
    columns of an encoder branch's visual tokens, where its files tell them. separator, positions, norm: as the recipe
    says them.
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

    @property
    def token(self) -> str:
        """The placeholder that stands for one visual token of this branch."""
        return f"<|fuse:{self.name}|>"

    @property
    def prefix(self) -> str:
        return f"{BRANCHES}{self.name}."


@dataclass(frozen=True)
class Fused:
    """The fused side of a plan.

    image_token: what the chat template writes for one image. ids: the row of each placeholder, by token.
    silent: ids that generation never samples. separators: the ids of each separator, by branch.
    """

    branches: tuple[FusedBranch, ...]
    host_type: str
    image_token: str
    image_token_id: int
    ids: Mapping[str, int] = field(default_factory=dict)
    silent: tuple[int, ...] = ()
    separators: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def lenders(self) -> tuple[Lender, ...]:
        return tuple(lender for branch in self.branches for lender in branch.lenders)
