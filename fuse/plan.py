"""Recipe and headers to plan: one row per output tensor and one per dropped input tensor. Pure; reads no weight."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fuse.adapters.update import Update
from fuse.anatomy import Member
from fuse.fused import Bridging, FoldedGraft, Fused, Lender, adapter_lenders
from fuse.new_tokens import NewToken
from fuse.rows import Added, Run
from fuse.safetensors_header import DTYPE_BYTES, TensorEntry
from fuse.verdicts import Verdict


@dataclass(frozen=True)
class Source:
    """One stored tensor that a row reads, with what an adapter makes of it."""

    member: str
    tensor: TensorEntry
    update: Update | None = None

    @classmethod
    def of(cls, member: Member, tensor: TensorEntry) -> "Source":
        """A tensor of a member."""
        return cls(member.name, tensor, member.adapter.updates.get(tensor.name) if member.adapter else None)

    @property
    def parts(self) -> tuple["Source", ...]:
        """The adapter's tensors that it reads besides."""
        return tuple(Source(self.update.adapter, entry) for _, entry in self.update.parts) if self.update else ()


@dataclass(frozen=True)
class Fold:
    """What a graft makes of a tensor of the host, or of its own tensors.

    graft: its name. what: as its kind says it (`fuse.grafts.folding`). host: the rows of the host's tensors that it is
    computed from as they are without it, in float32 or wider.
    """

    graft: str
    kind: str
    what: Any
    host: tuple["Row", ...] = ()


@dataclass(frozen=True)
class Row:
    """One tensor of the output. A row to `make` is computed after the others, from what they wrote.

    A row to `fold` has the graft's tensors as sources.

    sources are in the order of the method's inputs; `base` stands apart. `host` and `runs` are set where only the rows
    of shared tokens are merged: the output is the host's tensor with those rows replaced, and rows of new tokens added.
    donors are tables that lend single rows of new tokens and take no part in the method.
    """

    name: str
    action: Literal["merge", "copy", "make", "fold"]
    canonical: str
    part: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[Source, ...]
    base: Source | None = None
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    host: Source | None = None
    runs: tuple[Run, ...] = ()
    added: tuple[Added, ...] = ()
    donors: tuple[Source, ...] = ()
    note: str = ""
    fold: Fold | None = None

    @property
    def nbytes(self) -> int:
        size = DTYPE_BYTES[self.dtype]
        for n in self.shape:
            size *= n
        return size

    @property
    def reads(self) -> tuple[Source, ...]:
        """Everything that the row reads, each once."""
        inner = [source for row in (self.fold.host if self.fold else ()) for source in row.reads]
        found = (*self.sources, self.base, self.host, *self.donors, *inner)
        stored = [s for s in found if s is not None]
        return tuple(dict.fromkeys([*stored, *(part for s in stored for part in s.parts)]))


def without(row: Row, graft: str | None = None) -> Row | None:
    """A row of the host as it is before a graft is folded, and all that follow it; before any where graft is None.

    None for a tensor that is not there then.
    """
    at: Row | None = row
    while at is not None and at.fold is not None:
        inner = next((inner for inner in at.fold.host if inner.canonical == at.canonical), None)
        if at.fold.graft == graft:
            return inner
        at = inner
    return at if graft is None else row


def folded_names(row: Row) -> list[str]:
    """The grafts that are folded into a row of the host, in the order of folding."""
    found: list[str] = []
    at: Row | None = row
    while at is not None and at.fold is not None:
        found.insert(0, at.fold.graft)
        at = next((inner for inner in at.fold.host if inner.canonical == at.canonical), None)
    return found


@dataclass(frozen=True)
class Drop:
    """An input tensor that goes nowhere, and why."""

    source: Source
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a merge will do. `execute` runs `rows` in order; the rest is for people and for the folder's small files."""

    rows: tuple[Row, ...]
    drops: tuple[Drop, ...]
    verdicts: tuple[Verdict, ...]
    members: tuple[Member, ...]  # the base first, where there is one
    host: Member
    shards: tuple[tuple[str, tuple[int, ...]], ...]  # file name -> row numbers
    recipe_text: str
    recipe_file: Path
    template: Member  # whose chat template the output takes
    dtypes: Mapping[str, str]  # what the recipe says of each part's dtype, by part
    new_tokens: tuple[NewToken, ...] = ()
    template_text: str = ""  # set where the template is not the file that the member has
    fused: Fused | None = None  # set where the output is a fused folder
    folded: tuple[FoldedGraft, ...] = ()  # grafts that became part of the host, in the order of folding
    changes: Mapping[str, Any] = field(default_factory=dict)  # what stacked layers change in the text config

    @property
    def lenders(self) -> tuple[Lender, ...]:
        """What besides the members lends tensors: adapters, towers, encoders, grafts."""
        return (*adapter_lenders(self.members), *lenders_of(self.fused, self.folded))

    @property
    def bridges(self) -> dict[str, Bridging]:
        """The bridges of grafts and branches, by the name of what they read."""
        crossed = (*self.fused.branches, *self.fused.grafts) if self.fused else ()
        return {f"{one.prefix}bridge": one.bridge for one in crossed if one.bridge}

    @property
    def bytes_read(self) -> int:
        return sum(s.tensor.nbytes for row in self.rows for s in row.reads)

    @property
    def bytes_written(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @property
    def memory(self) -> int:
        """Bytes of tensors that the engine holds at its peak, besides what Python and torch need."""
        from fuse.memory import bridge_memory, host_memory, row_memory

        made = any(graft.made or graft.turned for graft in self.fused.grafts) if self.fused else False
        host = host_memory(self.rows) if made or any(folded.whole for folded in self.folded) else 0
        host += max([0, *map(bridge_memory, self.bridges.values())])
        return max([host, *(row_memory(row) for row in self.rows)])

    def digest(self) -> str:
        """sha256 over everything that decides the output's bytes, but for the weights themselves."""
        text = json.dumps([_row_key(row) for row in self.rows], sort_keys=True, default=asdict)
        return hashlib.sha256(text.encode()).hexdigest()


def lenders_of(fused: Fused | None, folded: Sequence[FoldedGraft]) -> tuple[Lender, ...]:
    """What besides the members lends tensors, each once: a graft may be folded in part."""
    heard = fused.lenders if fused else ()
    names = {lender.name for lender in heard}
    return (*heard, *(one.graft.lender for one in folded if one.graft.lender.name not in names))


def _row_key(row: Row) -> list[Any]:
    def key(source: Source | None) -> Any:
        if source is None:
            return None
        found = [source.member, source.tensor.name, source.tensor.dtype, list(source.tensor.shape)]
        if (update := source.update) is None:
            return found
        told = [update.kind, update.scale, update.transposed, update.rows]
        return [*found, told, [[role, key(part)] for (role, _), part in zip(update.parts, source.parts, strict=True)]]

    return [
        row.name, row.action, row.method, dict(row.parameters), row.dtype, list(row.shape),
        [key(s) for s in row.sources], key(row.base), key(row.host), [asdict(run) for run in (*row.runs, *row.added)],
        [key(s) for s in row.donors],
        *([[row.fold.kind, row.fold.what, [_row_key(inner) for inner in row.fold.host]]] if row.fold else []),
    ]  # fmt: skip


def unaccounted(
    plan_rows: Sequence[Row], drops: Sequence[Drop], members: Sequence[Member], lenders: Sequence[Lender] = ()
) -> list[str]:
    """Input tensors that no row reads and no drop names, as "member: key". Must be empty."""
    seen = {(s.member, s.tensor.name) for row in plan_rows for s in row.reads}
    seen |= {(d.source.member, d.source.tensor.name) for d in drops}
    for name, adapter in ((m.name, m.adapter) for m in members):
        if adapter:  # a tensor that stands in the base's place is read under its name
            seen |= {(adapter.name, key) for key, at in adapter.whole.items() if (name, at) in seen}
    inputs = [(m.name, key) for m in members for key in m.checkpoint.tensors]
    inputs += [(lender.name, key) for lender in (*adapter_lenders(members), *lenders) for key in lender.tensors]
    return [f"{name}: {key}" for name, key in inputs if (name, key) not in seen]


def shard(rows: Sequence[Row], limit: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Rows into files of at most `limit` bytes (a larger tensor has a file of its own), in row order.

    Rows to make go behind all others, into files of their own.
    """
    files: list[list[int]] = [[]]
    size, before = 0, ""
    for number in sorted(range(len(rows)), key=lambda number: rows[number].action == "make"):
        row = rows[number]
        apart, before = row.action == "make" != before, row.action
        if files[-1] and (size + row.nbytes > limit or apart):
            files.append([])
            size = 0
        files[-1].append(number)
        size += row.nbytes
    if len(files) == 1:
        return (("model.safetensors", tuple(files[0])),)
    return tuple((f"model-{i:05d}-of-{len(files):05d}.safetensors", tuple(f)) for i, f in enumerate(files, 1))
