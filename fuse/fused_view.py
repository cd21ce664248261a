"""The fused part of a plan for people and for programs: branches, visual tokens, context, memory at inference."""

from collections.abc import Sequence
from typing import Any

from fuse.errors import printable
from fuse.fused import Bridging, FoldedGraft, Fused, FusedGraft
from fuse.plan import Plan, folded_names
from fuse.sizes import counted, size_text
from fuse.visual_tokens import Cost, Seeing

WORDS = 1000  # text tokens whose keys and values are shown
NORMS = {"match": "norm of the first branch", "embeddings": "norm of the embeddings"}
CODE = {"llava_original": "original LLaVA", "mgm": "MGM", "slime": "SliME"}  # whose authors' code a branch follows


def graft_lines(grafts: Sequence[FusedGraft]) -> list[str]:
    """A line per graft: what it is, how much of it is heard, what it was cut from, what it adds to a prompt."""
    return [f"  {graft.name}: {graft_text(graft)}" for graft in grafts]


def graft_text(graft: FusedGraft) -> str:
    """`mks2 (ffn), scale 0.5, cut from llama of 4 layers`."""
    host = graft.donor.host
    text = f"{graft.kind} ({', '.join(graft.donor.files.SLOTS)}), scale {graft.scale:g}, cut from "
    told = str(host.get("model") or host.get("model_type") or "a host that it does not name")
    text += printable(" ".join(told.split()))  # a donor may come from anybody
    text += f" of {counted(host['layers'], 'layer')}" if isinstance(host.get("layers"), int) else ""
    if graft.scale == 0:
        return text + "; not heard"
    written = sum(graft.tokens.values())
    text += f", {counted(written, 'token')} behind every image" if written else ""
    text += f", on the tower of {graft.tower}" if graft.tower else ""
    text += bridge_text(graft.bridge) if graft.bridge else ""
    text += f", folded for task {graft.config['task']}" if graft.joined else ""
    return text


def bridge_text(bridge: Bridging) -> str:
    """`, over a bridge (ridge) from own, folded`, or why it stays beside the graft."""
    text = f", over a bridge ({bridge.config['method']}) from {bridge.host.checkpoint.origin}"
    return text + (", folded" if bridge.folded else f" that stays ({bridge.why})")


def bridges_json(fused: Fused) -> dict[str, dict[str, Any]]:
    """Every bridge, by the graft or branch that it brings over; `why` it stays, or "" where it is folded."""
    return {
        one.name: {
            "method": one.bridge.config["method"], "host": one.bridge.host.checkpoint.origin,
            "folded": one.bridge.folded, "why": one.bridge.why,
        }
        for one in (*fused.branches, *fused.grafts) if one.bridge
    }  # fmt: skip


def folded_lines(plan: Plan) -> list[str]:
    """A line per graft that became part of the host: what it was, and what it changed."""
    return [f"  {one.graft.name}: {folded_text(plan, one)}" for one in plan.folded]


def folded_text(plan: Plan, one: FoldedGraft) -> str:
    """`mks2 (ffn), scale 0.5, cut from llama of 4 layers; into 6 tensors of the host, intermediate_size 64`."""
    if one.graft.scale == 0:
        return graft_text(one.graft)
    count = sum(one.graft.name in folded_names(row) for row in plan.rows if row.part == "language")
    changed = "".join(f", {key} {str(value).lower()}" for key, value in one.changes.items())
    return f"{graft_text(one.graft)}; into {counted(count, 'tensor')} of the host{changed}"


def cost_lines(plan: Plan, cost: Cost) -> list[str]:
    """A line per branch, then what one image leaves of the context and what running the model takes."""
    words = f"{size_text(cost.cache * WORDS)} for {WORDS:,} text tokens"
    inference = f"  weights {size_text(cost.weights)}, KV cache "
    if not cost.branches:
        return ["at inference", inference + words]
    width, height = cost.size
    lines = [f"encoders (an image of {width}x{height} pixels; --image-size asks about another)"]
    seen = plan.fused.branches if plan.fused else ()
    bridges = {branch.name: bridge_text(branch.bridge) for branch in seen if branch.bridge}
    lines += [f"  {_branch(branch)}{bridges.get(branch.name, '')}" for branch in cost.branches]
    known = all(branch.kept is not None for branch in cost.branches)
    visual = counted(cost.visual, "visual token") + ("" if known else " and those of branches that are not known")
    fits = cost.left > 0
    lines.append(
        f"  {'=' if fits else '!'} context of {plan.host.name} {cost.context:,}: {visual}, "
        + (f"{cost.left:,} left" if fits else "which leave no room for words; give branches max_tokens")
    )
    return [*lines, "at inference", f"{inference}{size_text(cost.cache * cost.visual)} an image and {words}"]


def _branch(branch: Seeing) -> str:
    code = CODE.get(branch.kind)
    text = f"{branch.name}: {code + ', ' if code else ''}{branch.encoder}, "
    if branch.full is None:
        limit = f", at most {branch.kept:,} ({branch.prune})" if branch.kept is not None else ""
        return f"{text}visual tokens known once the encoder is built{limit}{_options(branch)}"
    if branch.problem and branch.full == 0:
        return f"{text}{branch.problem}"
    most = "up to " if branch.kind == "slime" else ""
    text += most + counted(branch.full, "visual token")
    if branch.problem:
        return f"{text}; {branch.problem}"
    if branch.kept is not None and branch.kept < branch.full:
        text += f", {branch.kept:,} after {branch.prune}"
    text += f", {counted(branch.markers, 'marker')}" if branch.markers else ""
    return text + _options(branch)


def _options(branch: Seeing) -> str:
    """What the branch asks for among the others."""
    text = f", {counted(branch.separator, 'separator token')}" if branch.separator else ""
    text += ", positions shared with the first branch" if branch.positions == "shared" else ""
    return text + (f", {NORMS[branch.norm]}" if branch.norm in NORMS else "")


def cost_json(cost: Cost) -> dict[str, Any]:
    return {
        "image_size": list(cost.size),
        "branches": [
            {"name": b.name, "kind": b.kind, "encoder": b.encoder, "visual_tokens": b.full, "kept": b.kept,
             "prune": b.prune or None, "markers": b.markers, "separator": b.separator, "positions": b.positions,
             "norm": b.norm}
            for b in cost.branches
        ],
        "context": cost.context, "visual_tokens": cost.visual, "context_left": cost.left,
        "inference": {"weights": cost.weights, "cache_per_token": cost.cache,
                      "cache_per_image": cost.cache * cost.visual},
    }  # fmt: skip
