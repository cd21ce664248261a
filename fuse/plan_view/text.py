"""A plan as plain text: the same in a file, a pipe and a terminal without colors."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fuse.checkpoint import free_bytes
from fuse.errors import printable
from fuse.licences import licence_lines
from fuse.plan import Plan, Row
from fuse.plan_view.parts import Part, parts_of
from fuse.plan_view.seconds import HASHED, seconds_of
from fuse.plan_view.uses import uses_of
from fuse.plan_view.words import drop_lines, names, treatment
from fuse.sizes import counted, duration_text, size_text
from fuse.visual_tokens import Cost

COLUMNS = ("part", "tensors", "parameters", "bytes", "what becomes of it")


def plan_text(plan: Plan, *, every: bool = False, cost: Cost | None = None) -> str:
    """The plan as text: members and what becomes of each, verdicts, licences, what happens to each part, what is left
    out, what it costs.

    every: a line per tensor, with names and numbers in full. cost: of a fused plan, what images will cost its model.
    """
    lines = ["members"]
    for title, uses in member_branches(plan):
        lines += [f"  {title}", *(f"    {use}" for use in uses)]
    for title, inside in verdict_sections(plan):
        lines += [title, *inside]
    lines.append(f"tensors ({len(plan.rows)})")
    lines += [f"  {line}" for line in (every_row(plan.rows) if every else _table(parts_of(plan.rows)))]
    for title, inside in sections(plan, every=every, cost=cost):
        lines += [title, *inside]
    return printable("\n".join([*lines, *(f"note: {note}" for note in notes(plan))]))


def member_branches(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """Each member, adapter, encoder and donor in a line, and what becomes of its tensors."""
    uses = uses_of(plan)
    for m in plan.members:
        mark = "  (host)" if m is plan.host else ""
        pin = f" @ {m.checkpoint.revision[:12]}" if m.checkpoint.revision else ""
        size = f"{counted(len(m.checkpoint.tensors), 'tensor')}, {size_text(m.checkpoint.nbytes)}"
        yield f"{m.name}: {m.checkpoint.origin}{pin}  [{m.family.model_type}, {size}]{mark}", uses.get(m.name, [])
    for lender in plan.lenders:
        size = f"{counted(len(lender.tensors), 'tensor')}, {size_text(sum(e.nbytes for e in lender.tensors.values()))}"
        yield f"{lender.name}: {lender.origin}  [{size}]", uses.get(lender.name, [])


def verdict_sections(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """Title and lines of what was asked of the members; a line with an answer begins with = or !."""
    yield (
        "verdicts",
        [f"  {'=' if v.agrees else '!'} {v.topic}: {v.text}" for v in plan.verdicts if v.topic != "licence"],
    )
    yield "licences", licence_lines(plan)


def sections(plan: Plan, *, every: bool, cost: Cost | None) -> Iterator[tuple[str, list[str]]]:
    """Title and lines of what stands behind the tensors."""
    if plan.drops:
        yield f"left out ({len(plan.drops)})", [f"  {line}" for line in drop_lines(plan, every)]
    if plan.fused and plan.fused.grafts:
        from fuse.fused_view import graft_lines

        yield "grafts", graft_lines(plan.fused.grafts)
    if plan.folded:
        from fuse.fused_view import folded_lines

        yield "folded", folded_lines(plan)
    yield "cost", [f"  {line}" for line in _cost(plan)]
    if cost is not None:
        from fuse.fused_view import cost_lines

        title, *rest = cost_lines(plan, cost)
        yield title, rest


def notes(plan: Plan) -> list[str]:
    """What one should know of the output besides."""
    if plan.host.family.native or plan.fused:
        return []
    return [f"the output has the layout of {plan.host.name} ({plan.host.family.model_type}), which the code it came "
            "from loads; transformers has no class for it"]  # fmt: skip


def every_row(rows: Iterable[Row]) -> list[str]:
    """A line per tensor."""
    return [f"{row.name} {row.dtype}[{', '.join(map(str, row.shape))}]  {treatment(row, every=True)}" for row in rows]


def part_rows(parts: Sequence[Part]) -> Iterator[tuple[str, str, str, str, str]]:
    """Cells under COLUMNS: a row per part, and under it one per way of treatment with the names that it covers; one
    for both where there is one way. Where the parts are written in several dtypes, each says its own.
    """
    several = len({part.dtype for part in parts}) > 1
    for part in parts:
        rows = [(f"{len(group.rows):,}", f"{group.parameters:,}", size_text(group.nbytes),
                 f"{group.what}: {names(group.rows)}") for group in part.groups]  # fmt: skip
        dtype = part.dtype if several else ""
        if len(rows) == 1:
            yield (part.name, *rows[0][:3], f"{dtype}, {rows[0][3]}" if dtype else rows[0][3])
            continue
        yield part.name, f"{len(part.rows):,}", f"{part.parameters:,}", size_text(part.nbytes), dtype
        yield from (("", *row) for row in rows)


def _table(parts: Sequence[Part]) -> list[str]:
    rows = [COLUMNS, *part_rows(parts)]
    wide = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{row[0]:{wide[0]}}  {row[1]:>{wide[1]}}  {row[2]:>{wide[2]}}  {row[3]:>{wide[3]}}  {row[4]}".rstrip()
        for row in rows
    ]


def _cost(plan: Plan) -> list[str]:
    return [
        f"read {size_text(plan.bytes_read)}, write {size_text(plan.bytes_written)} in "
        f"{counted(len(plan.shards), 'file')}, tensors in memory up to {size_text(plan.memory)}; "
        f"free disk here {size_text(free_bytes(Path.cwd()))}",
        _time(plan),
    ]


def _time(plan: Plan) -> str:
    """`at least 28 s on 2 cores, where the disk gives 1.5 GB/s (...)`: the assumption stands in the line."""
    found = seconds_of(plan)
    used = "".join(f", {rate:g} for {method}" for method, rate in found.rates.items())
    text = f"time at least {duration_text(found.at_least)} on {counted(found.cores, 'core')}"
    text += (
        f", if the disk gives {size_text(int(found.disk_rate))}/s (seconds of a core for a GB, by docs/benchmarks.md"
    )
    text += f": {HASHED:g} for sha256{used})"
    return text + (f"; no rate is known for {', '.join(found.unknown)}" if found.unknown else "")
