"""What becomes of each member: how many of its tensors are merged, copied, folded, taken as the base, or left out."""

from collections.abc import Iterator

from fuse.plan import Plan, Row, Source

WORDS = {"merge": "merged", "copy": "copied", "fold": "folded"}


def uses_of(plan: Plan) -> dict[str, list[str]]:
    """Sentences by the name of a member or of what else lends tensors: `language: 39 merged`.

    A tensor that several rows read counts once for each thing that becomes of it.
    """
    seen: dict[str, dict[tuple[str, str], set[str]]] = {}
    for row in plan.rows:
        for source, becomes in _reads(row):
            of = seen.setdefault(source.member, {}).setdefault((row.part, becomes), set())
            of.add(source.tensor.name)
    left: dict[str, int] = {}
    for drop in plan.drops:
        left[drop.source.member] = left.get(drop.source.member, 0) + 1
    told = {}
    for name in [*(m.name for m in plan.members), *(lender.name for lender in plan.lenders)]:
        by_part: dict[str, list[str]] = {}
        for (part, becomes), tensors in seen.get(name, {}).items():
            by_part.setdefault(part, []).append(f"{len(tensors)} {becomes}")
        told[name] = [f"{part}: {', '.join(lines)}" for part, lines in by_part.items()]
        told[name] += [f"left out: {left[name]}"] if name in left else []
    return told


def _reads(row: Row) -> Iterator[tuple[Source, str]]:
    """Everything that a row reads, with what becomes of it."""
    becomes = WORDS.get(row.action, "read")
    for source in row.sources:
        yield source, f"{becomes} ({row.method})" if row.action == "merge" else becomes
        for part in source.parts:
            yield part, "applied"
    if row.base:
        yield row.base, f"the base of {row.method}"
        for part in row.base.parts:
            yield part, "applied"
    if row.host and row.host not in row.sources:
        yield row.host, "whose other rows stay"
    for source in row.donors:
        yield source, "that lend rows"
    for inner in row.fold.host if row.fold else ():
        yield from _reads(inner)
