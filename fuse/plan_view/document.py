"""A plan for programs: what `fuse plan --json` prints."""

from typing import Any

from fuse.checkpoint import free_bytes
from fuse.fused_grafts import graft_json
from fuse.licences import licences_json, roll_up
from fuse.plan import Plan, Row, Source
from fuse.plan_view.parts import parts_of
from fuse.plan_view.seconds import seconds_of
from fuse.plan_view.uses import uses_of
from fuse.visual_tokens import Cost


def plan_json(plan: Plan, cost: Cost | None = None) -> dict[str, Any]:
    """The plan as JSON: a row per output tensor and per dropped input tensor, and what `plan_text` says besides: what
    becomes of each member, the parts, licences, verdicts and costs.
    """
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

    uses, seconds = uses_of(plan), seconds_of(plan)
    found = {
        "plan": plan.digest(),
        "host": plan.host.name,
        "members": [
            {"name": m.name, "origin": m.checkpoint.origin, "revision": m.checkpoint.revision,
             "family": m.family.model_type, "tensors": len(m.checkpoint.tensors), "bytes": m.checkpoint.nbytes,
             "licence": m.licence, "becomes": uses.get(m.name, []),
             **({"adapter": m.adapter.checkpoint.origin} if m.adapter else {})}
            for m in plan.members
        ],
        "verdicts": [{"topic": v.topic, "agrees": v.agrees, "text": v.text} for v in plan.verdicts],
        "licences": licences_json(roll_up(plan)),
        "parts": [
            {"part": part.name, "tensors": len(part.rows), "parameters": part.parameters, "bytes": part.nbytes,
             "dtype": part.dtype, "treatments": [
                 {"what": group.what, "tensors": len(group.rows), "parameters": group.parameters, "bytes": group.nbytes}
                 for group in part.groups]}
            for part in parts_of(plan.rows)
        ],
        "rows": [row_json(row) for row in plan.rows],
        "dropped": [{"source": source(d.source), "reason": d.reason} for d in plan.drops],
        "files": [{"name": name, "tensors": [plan.rows[i].name for i in numbers]} for name, numbers in plan.shards],
        "cost": {"read": plan.bytes_read, "write": plan.bytes_written, "memory": plan.memory,
                 "free": free_bytes(plan.host.folder), "seconds": seconds.at_least, "cores": seconds.cores,
                 "disk_rate": seconds.disk_rate, "without_a_rate": list(seconds.unknown)},
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
