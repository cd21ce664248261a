"""A plan for people (a tree, layers folded) and for programs (JSON)."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fuse.checkpoint import free_bytes
from fuse.dtypes import told
from fuse.errors import printable
from fuse.fused_grafts import graft_json
from fuse.plan import Plan, Row, Source, folded_names, without
from fuse.sizes import counted, size_text
from fuse.visual_tokens import Cost

NAMES_SHOWN = 2
LAYER = re.compile(r"\.(\d+)(?=\.)")
LEFT = re.compile(r"layer (\d+) of (.*) is not among the layers")


def plan_text(plan: Plan, *, every: bool = False, cost: Cost | None = None) -> str:
    """The plan as text: members, verdicts, what happens to each tensor, what is left out, what it costs.

    cost: of a fused plan, what images will cost its model.
    """
    lines = ["members"]
    for m in plan.members:
        mark = "  (host)" if m is plan.host else ""
        pin = f" @ {m.checkpoint.revision[:12]}" if m.checkpoint.revision else ""
        size = f"{counted(len(m.checkpoint.tensors), 'tensor')}, {size_text(m.checkpoint.nbytes)}"
        lines.append(f"  {m.name}: {m.checkpoint.origin}{pin}  [{m.family.model_type}, {size}]{mark}")
    for lender in plan.lenders:
        size = f"{counted(len(lender.tensors), 'tensor')}, {size_text(sum(e.nbytes for e in lender.tensors.values()))}"
        lines.append(f"  {lender.name}: {lender.origin}  [{size}]")
    lines.append("verdicts")
    lines += [f"  {'=' if v.agrees else '!'} {v.topic}: {v.text}" for v in plan.verdicts]
    lines.append(f"tensors ({len(plan.rows)})")
    lines += [f"  {line}" for line in (_every_row(plan.rows) if every else _folded(plan.rows))]
    if plan.drops:
        lines.append(f"left out ({len(plan.drops)})")
        lines += [f"  {line}" for line in _drop_lines(plan, every)]
    if plan.fused and plan.fused.grafts:
        from fuse.fused_view import graft_lines

        lines += ["grafts", *graft_lines(plan.fused.grafts)]
    if plan.folded:
        from fuse.fused_view import folded_lines

        lines += ["folded", *folded_lines(plan)]
    lines.append("cost")
    lines.append(f"  read {size_text(plan.bytes_read)}, write {size_text(plan.bytes_written)} in "
                 f"{counted(len(plan.shards), 'file')}, tensors in memory up to {size_text(plan.memory)}; "
                 f"free disk here {size_text(free_bytes(Path.cwd()))}")  # fmt: skip
    if cost is not None:
        from fuse.fused_view import cost_lines

        lines += cost_lines(plan, cost)
    if not plan.host.family.native and not plan.fused:
        lines.append(
            f"note: the output has the layout of {plan.host.name} ({plan.host.family.model_type}), which the code "
            "it came from loads; transformers has no class for it"
        )
    return printable("\n".join(lines))


def _every_row(rows: Iterable[Row]) -> list[str]:
    return [f"{row.name} {row.dtype}[{', '.join(map(str, row.shape))}]  {_treatment(row, every=True)}" for row in rows]


def _folded(rows: Iterable[Row]) -> list[str]:
    """A line per part, and under it a line per way of treatment with the names it covers, layer numbers folded."""
    parts: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        parts.setdefault(row.part, {}).setdefault(_treatment(row, every=False), []).append(row)
    lines = []
    several = len({told([row for group in of.values() for row in group]) for of in parts.values()}) > 1
    for part, treatments in parts.items():
        inside = [row for group in treatments.values() for row in group]
        dtype = f", {told(inside)}" if several else ""
        lines.append(f"{part}: {counted(len(inside), 'tensor')}, {size_text(sum(row.nbytes for row in inside))}{dtype}")
        for treatment, group in treatments.items():
            lines.append(f"  {len(group):4} {treatment}: {_names(group)}")
    return lines


def _names(rows: Iterable[Row]) -> str:
    """The names of tensors in short: one layer's number where all are of it, else layers folded to {}."""
    names = [row.name for row in rows]
    folded = list(dict.fromkeys(LAYER.sub(".{}", name) for name in names))
    layers = {match[1] for name in names for match in LAYER.finditer(name)}
    if len(layers) == 1 and len(names) > 1:
        folded = [name.replace("{}", layers.copy().pop()) for name in folded]
    if len(folded) <= NAMES_SHOWN:
        return ", ".join(folded)
    inside = [name for name in names if LAYER.search(name)]
    if len(layers) == 1 and len(names) > len(inside) >= len(names) - 2:  # a layer, and what stands beside it
        outside = [name for name in names if name not in inside]
        return ", ".join([_common([name.split(".") for name in inside]) + "*", *outside])
    common = _common([name.split(".") for name in folded])
    return f"{common}*" if common else f"{folded[0]}, {folded[1]} and {len(folded) - 2} more"


def _common(names: list[list[str]]) -> str:
    """The leading pieces that all names share, each with its dot."""
    pieces = []
    for column in zip(*names, strict=False):  # up to the shortest name
        if len(set(column)) > 1:
            break
        pieces.append(f"{column[0]}.")
    return "".join(pieces)


def _treatment(row: Row, every: bool) -> str:
    if row.action == "make":
        return row.note
    if row.action == "fold":
        return _fold(row, every)
    if row.action == "copy":
        return f"copy from {row.sources[0].member}" + (f" ({row.note})" if row.note else "")
    text = f"{row.method} of {_sources(row.sources)}" + (" over base" if row.base else "")
    numbers = ", ".join(f"{k} {_number(v)}" for k, v in row.parameters.items() if every or not _is_default(row, k, v))
    return text + (f" [{numbers}]" if numbers else "") + (f" ({row.note})" if row.note else "")


def _fold(row: Row, every: bool) -> str:
    """`fold adapter, memory into linear of a + b`, in the order of folding."""
    if row.part == "graft":
        return f"fold {row.sources[0].member} into fewer tensors"
    before = without(row)
    return f"fold {', '.join(folded_names(row))} into {_treatment(before, every) if before else 'a new tensor'}"


def _is_default(row: Row, name: str, value: Any) -> bool:
    from fuse.methods.table import METHODS

    default = METHODS[row.method].params[name].default
    return value == default or value == [default] * len(row.sources)


def _sources(sources: Iterable[Source]) -> str:
    return " + ".join(s.member + (f" ({s.update.kind})" if s.update else "") for s in sources)


def _number(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(_number(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _times(count: int) -> str:
    return f" x{count}" if count > 1 else ""


def _drop_lines(plan: Plan, every: bool) -> list[str]:
    groups: dict[tuple[str, str, str], int] = {}
    layers: dict[tuple[str, str, str], list[int]] = {}
    for drop in plan.drops:
        name = drop.source.tensor.name
        short = name if every else LAYER.sub(".{}", name).split(".{}")[0]
        match = None if every else LEFT.fullmatch(drop.reason)
        reason = match[2] if match else drop.reason
        key = (drop.source.member, short if every else short.split(".")[0] + ".*", reason)
        groups[key] = groups.get(key, 0) + 1
        if match:
            layers.setdefault(key, []).append(int(match[1]))
    told = {key: _left(layers[key], key[2]) if key in layers else key[2] for key in groups}
    return [f"{key[0]}: {key[1]}{_times(count)}  {told[key]}" for key, count in groups.items()]


def _left(numbers: Iterable[int], member: str) -> str:
    """`layers 0-3, 7 of a are not among the layers`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    what, verb = ("layer", "is") if text.isdecimal() else ("layers", "are")
    return f"{what} {text} of {member} {verb} not among the layers"


def plan_json(plan: Plan, cost: Cost | None = None) -> dict[str, Any]:
    """The plan as JSON: a row per output tensor and per dropped input tensor, verdicts and costs."""
    from fuse.fused_view import bridges_json, cost_json

    def source(s: Source | None) -> Any:
        return s and {"member": s.member, "file": str(s.tensor.file), "tensor": s.tensor.name,
                      "bytes": [s.tensor.begin, s.tensor.end], **update(s)}  # fmt: skip

    def update(s: Source) -> Any:
        if (u := s.update) is None:
            return {}
        parts = {role: source(part) for (role, _), part in zip(u.parts, s.parts, strict=True)}
        return {"update": {"kind": u.kind, "scale": u.scale, "transposed": u.transposed, "rows": u.rows, **parts}}

    def row_json(r: Row) -> dict[str, Any]:
        fold = r.fold and {"graft": r.fold.graft, "kind": r.fold.kind, "host": [row_json(h) for h in r.fold.host]}
        return {
            "name": r.name, "action": r.action, "part": r.part, "canonical": r.canonical, "dtype": r.dtype,
            "shape": list(r.shape), "method": r.method, "parameters": dict(r.parameters),
            "sources": [source(s) for s in r.sources], "base": source(r.base), "host": source(r.host),
            "donors": [source(s) for s in r.donors],
            "runs": [[run.host, run.length, list(run.sources)] for run in r.runs],
            "added": [[a.row, a.source, a.source_row] for a in r.added], "note": r.note, "fold": fold,
        }  # fmt: skip

    found = {
        "plan": plan.digest(),
        "host": plan.host.name,
        "members": [
            {"name": m.name, "origin": m.checkpoint.origin, "revision": m.checkpoint.revision,
             "family": m.family.model_type, "tensors": len(m.checkpoint.tensors), "bytes": m.checkpoint.nbytes,
             "licence": m.licence, **({"adapter": m.adapter.checkpoint.origin} if m.adapter else {})}
            for m in plan.members
        ],
        "verdicts": [{"topic": v.topic, "agrees": v.agrees, "text": v.text} for v in plan.verdicts],
        "rows": [row_json(row) for row in plan.rows],
        "dropped": [{"source": source(d.source), "reason": d.reason} for d in plan.drops],
        "files": [{"name": name, "tensors": [plan.rows[i].name for i in numbers]} for name, numbers in plan.shards],
        "cost": {"read": plan.bytes_read, "write": plan.bytes_written, "memory": plan.memory,
                 "free": free_bytes(plan.host.folder)},
    }  # fmt: skip
    if plan.folded:
        found["folded"] = [
            {"name": one.graft.name, "kind": one.graft.kind, "scale": one.graft.scale, "changes": dict(one.changes)}
            for one in plan.folded
        ]
    if plan.fused:
        found["fused"] = {
            "host_type": plan.fused.host_type, "image_token": plan.fused.image_token,
            "image_token_id": plan.fused.image_token_id, "tokens": dict(plan.fused.ids),
            "grafts": [graft_json(graft, plan.fused.ids) for graft in plan.fused.grafts],
            **({"bridges": bridges_json(plan.fused)} if plan.bridges else {}),
            **(cost_json(cost) if cost else {}),
        }  # fmt: skip
    return found
