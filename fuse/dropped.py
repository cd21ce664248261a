"""The input tensors that go nowhere, each with its reason; one without a reason is an error."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from fuse.anatomy import Member
from fuse.errors import CheckpointError
from fuse.layers import Stack
from fuse.methods.table import METHODS
from fuse.parameters import Parameters
from fuse.plan import Drop, Row, Source
from fuse.recipe import Recipe


@dataclass(frozen=True)
class Uses:
    """What a plan takes from whom: language members with their method, members whose eyes are kept or mixed in."""

    recipe: Recipe
    host: Member
    base: Member | None
    language: Parameters
    kept: Sequence[str]  # members whose eyes the output keeps, in the order of `vision`
    mixed: Mapping[str, Sequence[str]]  # member whose eyes are kept -> members merged into them
    stack: Stack | None = None


def drops(everyone: Sequence[Member], rows: Sequence[Row], uses: Uses) -> list[Drop]:
    """Every tensor of every member, and of its adapter, that no row reads."""
    read = {(s.member, s.tensor.name) for row in rows for s in row.reads}
    return [drop for m in everyone for drop in (*_of_member(m, read, uses), *_of_adapter(m, read, uses))]


def _of_member(m: Member, read: Set[tuple[str, str]], uses: Uses) -> list[Drop]:
    return [
        Drop(Source(m.name, entry), _reason(m, key, uses))
        for key, entry in m.checkpoint.tensors.items()
        if (m.name, key) not in read
    ]


def _of_adapter(m: Member, read: Set[tuple[str, str]], uses: Uses) -> list[Drop]:
    """The base's tensors in whose place the adapter's stand, and the adapter's of what is left out."""
    if (adapter := m.adapter) is None:
        return []
    found = [Drop(Source(m.name, entry), "the adapter holds its own") for entry in adapter.displaced]
    for key, entry in adapter.checkpoint.tensors.items():
        at = adapter.whole.get(key) or adapter.targets.get(key, "")
        if key in adapter.unused:
            found.append(Drop(Source(adapter.name, entry), adapter.unused[key]))
        elif (m.name, at) not in read:
            found.append(Drop(Source(adapter.name, entry), _reason(m, at, uses)))
    return found


def _reason(member: Member, key: str, uses: Uses) -> str:
    place = member.places[key]
    if place is None:
        return "a buffer that is recomputed when the model is built"
    if place.part != "language" and not any(member.name in names for names in uses.mixed.values()):
        if member is uses.base:
            return "the base lends its language model only"
        return f"vision keeps {_and(uses.kept)}" if uses.recipe.vision else "vision is empty"
    if place.part == "language" and (why := _language_reason(member, place.canonical, uses)):
        return why
    raise CheckpointError(
        f"tensor {key!r} of {member.name} has no counterpart in {uses.host.name}",
        where=member.checkpoint.tensors[key].file,
        hint="members must have the same tensors in the parts that are merged",
    )


def _language_reason(member: Member, canonical: str, uses: Uses) -> str:
    """Why a tensor of a language model goes nowhere; "" where one of the output should have been made of it."""
    if member is uses.base and METHODS[uses.language.merge.method].base == "none":
        return f"{uses.language.merge.method} uses no base"
    if member is not uses.base and member.name not in uses.language.members:
        return f"no layer of {member.name} is taken" if uses.stack else f"language gives {member.name} no weight"
    choice = uses.recipe.language.embeddings
    if canonical in {uses.host.text.embedding, uses.host.text.head} and choice not in {"merge", "union"}:
        return f"embeddings: {choice}"
    return uses.stack.why_left_out(member.name, canonical) if uses.stack else ""


def _and(names: Sequence[str]) -> str:
    """`a's`, `a's and b's`, `a's, b's and c's`."""
    told = [f"{name}'s" for name in names]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
