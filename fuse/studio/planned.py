"""A plan as the page shows it: members, verdicts, what becomes of each part, what it costs."""

from dataclasses import dataclass
from typing import Any

from fuse.errors import printable
from fuse.plan import Plan
from fuse.plan_view import plan_json, plan_text
from fuse.planner import make_plan
from fuse.recipe_yaml import LoadedRecipe
from fuse.safetensors_header import DTYPE_BYTES
from fuse.sizes import counted, size_text
from fuse.visual_tokens import DEFAULT_SIZE, Cost, cost_of

Cells = tuple[str, ...]
MEMBERS = ("member", "from", "kind", "tensors", "size", "licence")
PARTS = ("part", "tensors", "size", "what happens")
EYES = ("branch", "encoder", "visual tokens", "kept")


@dataclass(frozen=True)
class Planned:
    """A plan and its words. members, parts, eyes: rows of text under MEMBERS, PARTS and EYES.

    verdicts: (agrees, topic, text), what does not agree first. costs: (name, value). text: as `fuse plan` prints it.
    """

    plan: Plan
    headline: str
    members: tuple[Cells, ...]
    verdicts: tuple[tuple[bool, str, str], ...]
    parts: tuple[Cells, ...]
    eyes: tuple[Cells, ...]
    costs: tuple[tuple[str, str], ...]
    text: str


def planned(loaded: LoadedRecipe) -> Planned:
    """The plan of a recipe in words; errors as `make_plan` raises them."""
    plan = make_plan(loaded)
    cost = cost_of(plan, DEFAULT_SIZE)
    told = plan_json(plan, cost)
    kind = f"a fused model on {plan.host.name}" if plan.fused else f"a {plan.host.family.model_type} model"
    size = size_text(plan.bytes_written)
    return Planned(
        plan=plan,
        headline=f"This recipe makes {kind}: {counted(len(plan.rows), 'tensor')}, {size}.",
        members=tuple(_member(one, told["host"]) for one in told["members"]),
        verdicts=tuple(
            (one["agrees"], printable(one["topic"]), printable(one["text"]))
            for one in sorted(told["verdicts"], key=lambda one: one["agrees"])
        ),
        parts=tuple(_parts(told["rows"], len(plan.drops))),
        eyes=tuple(
            (one.name, one.encoder, _count(one.full), one.problem or _count(one.kept)) for one in cost.branches
        ) if cost else (),
        costs=tuple(_costs(plan, cost)),
        text=plan_text(plan, cost=cost),
    )  # fmt: skip


def _member(one: dict[str, Any], host: str) -> Cells:
    name = f"{one['name']} (host)" if one["name"] == host else one["name"]
    cells = (name, one["origin"], one["family"], f"{one['tensors']:,}", size_text(one["bytes"]), one["licence"])
    return tuple(printable(cell or "not stated") for cell in cells)


def _parts(rows: list[dict[str, Any]], dropped: int) -> list[Cells]:
    """A row for each way in which tensors of a part are treated, in the order of the output."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        count = DTYPE_BYTES[row["dtype"]]
        for edge in row["shape"]:
            count *= edge
        groups.setdefault((row["part"], _what(row)), []).append(count)
    found = [(part, f"{len(sizes):,}", size_text(sum(sizes)), what) for (part, what), sizes in groups.items()]
    return [*found, ("left out", f"{dropped:,}", "", "read by nothing; the reasons are below")] if dropped else found


def _what(row: dict[str, Any]) -> str:
    if row["action"] == "make":
        return row["note"]
    names = " + ".join(source["member"] for source in row["sources"])
    if row["action"] == "fold":
        return f"{names} folded in"
    if row["action"] == "copy":
        return f"copied from {names}"
    numbers = row["parameters"].get("weights", row["parameters"].get("weight"))
    told = f", {'/'.join(f'{number:g}' for number in numbers)}" if isinstance(numbers, list) else ""
    return f"{row['method']} of {names}{' over base' * (row['base'] is not None)}{told}"


def _costs(plan: Plan, cost: Cost | None) -> list[tuple[str, str]]:
    found = [
        ("to read", size_text(plan.bytes_read)),
        ("to write", f"{size_text(plan.bytes_written)} in {counted(len(plan.shards), 'file')}"),
        ("memory for tensors", f"up to {size_text(plan.memory)}"),
    ]
    if cost is None:
        return found
    width, height = cost.size
    found.append((f"context that an image of {width}x{height} leaves", f"{cost.left:,} of {cost.context:,} tokens"))
    return [*found, ("weights when it runs", size_text(cost.weights))]


def _count(tokens: int | None) -> str:
    return "known once it is built" if tokens is None else f"{tokens:,}"
