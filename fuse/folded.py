"""The folds of a plan: which grafts become part of the host, which are left beside it, and the rows that do it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from fuse import families
from fuse.anatomy import Member
from fuse.families.registry import TEXTS
from fuse.fused import FoldedGraft, FusedGraft
from fuse.grafts import folding
from fuse.grafts.donor import donor_of
from fuse.grafts.folding import Change, Host
from fuse.plan import Fold, Row, Source
from fuse.recipe_graft import Graft
from fuse.recipe_yaml import LoadedRecipe

Changes = Mapping[str, Change]  # by canonical name of a tensor of the host


@dataclass(frozen=True)
class Folding:
    """What becomes of the recipe's grafts.

    left: those that are heard beside the host. folded: those that are part of it, in the order of folding, each with
    what it does to the host's tensors.
    """

    left: tuple[FusedGraft, ...] = ()
    folded: tuple[tuple[FoldedGraft, Changes], ...] = ()


def leaves_grafts(loaded: LoadedRecipe) -> bool:
    """Whether a graft needs the fused class: it is left beside the host, names a branch, or can never be folded, which
    the fold itself will say. Raises what `donor_of` raises.
    """
    for number, entry in enumerate(loaded.recipe.grafts):
        kind = donor_of(loaded, number).kind if entry.fold else ""
        if not entry.fold or entry.tower or kind in folding.NEVER or (entry.scale != 0 and kind in folding.STAYS):
            return True
    return False


def folding_of(loaded: LoadedRecipe, member: Member, grafts: Sequence[FusedGraft]) -> Folding:
    """Take the grafts that the recipe folds into the host apart from those that are left.

    grafts: all of them, in the order of the recipe. Raises RecipeError where a fold would not give what the graft
    gives.
    """
    entries, host, number = loaded.recipe.grafts, _host(member), 0
    left: dict[int, FusedGraft] = {}
    inside: list[int] = []
    done: list[tuple[FoldedGraft, Changes]] = []
    silent: list[tuple[FoldedGraft, Changes]] = []
    try:
        for number, graft in enumerate(grafts):
            smaller = _smaller(graft, entries[number], host) if entries[number].fold else graft
            if entries[number].fold and graft.scale == 0:
                unheard = replace(_lending(graft, (), (), "its scale is 0"), bridge=None)
                silent.append((FoldedGraft(unheard, {}), {}))
                continue
            if smaller is not None:
                left[number] = smaller
            if entries[number].fold and graft.kind in folding.ORDER:
                inside.append(number)
        for number in sorted(inside, key=lambda number: folding.ORDER.index(grafts[number].kind)):
            found = folding.changed(grafts[number], host)
            host = host.after(found)
            _check_beside(number, grafts[number], left, [one.graft for one, _ in done], host)
            one = _folded(grafts[number], found, left.get(number))
            done.append((one, found.tensors))
            if number in left:
                lender = replace(left[number].lender, dropped=one.graft.lender.dropped)
                left[number] = replace(left[number], lender=lender)
    except ValueError as error:
        told = f"{grafts[number].name} cannot be folded into {member.name}: {error}"
        raise loaded.error(("grafts", number, "fold"), told) from None
    numbers = sorted(left)
    return Folding(tuple(left[n] for n in numbers), (*done, *silent))


def _host(member: Member) -> Host:
    """The member's language model before any fold."""
    where = str(member.folder)
    config = families.text_config(member.checkpoint.config, member.family, where)
    kind = families.text_type_of(member.checkpoint.config, member.family, where)
    kind = f"{kind}_text" if f"{kind}_text" in TEXTS else kind  # flat Qwen2-VL files state the whole's
    shapes = {name: entry.shape for name, entry in member.language.items()}
    return Host(member.text, member.basis, {**config, "model_type": kind}, shapes)


def _smaller(graft: FusedGraft, entry: Graft, host: Host) -> FusedGraft | None:
    """The graft that is left of one that is folded, or None. Raises ValueError where it cannot be folded."""
    if graft.kind in folding.NEVER:
        raise ValueError(folding.NEVER[graft.kind])
    if entry.bridge is not None and graft.kind not in folding.STAYS:
        why = graft.bridge.why if graft.bridge else ""
        raise ValueError(f"it comes from another basis, and its bridge stays: {why}")
    if graft.bridge is not None and graft.bridge.folded:
        return graft
    if graft.kind in folding.ORDER:
        folding.changed(graft, host)
    left = folding.left_of(graft, entry.options)
    if left is None:
        return None
    config, joined = left
    read = set(chain(*joined.values())) if joined else set(graft.donor.files.shapes(config))
    graft = _lending(graft, read, (), "the fold does not read it")
    smaller = replace(graft, config=config, unfolded=graft.config, joined=joined, made={})
    return smaller if graft.bridge is None else _over_bridge(smaller)


def _over_bridge(graft: FusedGraft) -> FusedGraft:
    """The smaller graft with its bridge in it. Raises ValueError where the bridge stays."""
    from fuse.grafts.bridge_fold_files import crossed  # which needs numpy

    made = crossed(graft)
    if made.bridge is not None and not made.bridge.folded:
        raise ValueError(f"it comes from another basis, and its bridge stays: {made.bridge.why}")
    return made


def _folded(graft: FusedGraft, found: folding.Changed, left: FusedGraft | None) -> FoldedGraft:
    read = {name for change in found.tensors.values() for name in change.donors}
    kept = left.lender.places if left else ()
    graft = _lending(graft, read, kept, "the fold does not read it")
    return FoldedGraft(graft, found.config, graft.kind in folding.WHOLE)


def _lending(graft: FusedGraft, read: Collection[str], kept: Collection[str], why: str) -> FusedGraft:
    """The graft with a lender that knows which tensors of the donor are read. kept: those that are read elsewhere."""
    tensors, dropped = graft.donor.tensors, graft.lender.dropped
    unread = {name: why for name in tensors if name not in read and name not in kept}
    lender = replace(
        graft.lender, places={name: name for name in tensors if name in read}, dropped={**unread, **dropped}
    )
    return replace(graft, lender=lender)


def _check_beside(
    number: int, graft: FusedGraft, left: Mapping[int, FusedGraft], done: Sequence[FusedGraft], after: Host
) -> None:
    """ValueError where another graft, heard or folded, does not go together with the fold. after: the host with it."""
    for other, heard in left.items():
        if other != number and (why := folding.why_not_beside(graft, heard, other < number, after)):
            raise ValueError(why)
    for inside in done:
        if graft.kind in folding.WHOLE and inside.kind == graft.kind:
            raise ValueError(f"its routes are those of a host without {inside.name}")


def fold_rows(rows: Sequence[Row], folded: Sequence[tuple[FoldedGraft, Changes]]) -> list[Row]:
    """The rows with the folds: changed tensors where they stood, new ones behind the first that they are made of."""
    made = list(rows)
    for one, changes in folded:
        before = {row.canonical: row for row in made if row.part == "language"}
        behind = {name: change.host[0] for name, change in changes.items() if name not in before}
        found: list[Row] = []
        for row in made:
            mine = row.part == "language"
            found.append(_row(row.canonical, changes, one, before) if mine and row.canonical in changes else row)
            found += [_row(name, changes, one, before) for name, at in behind.items() if mine and at == row.canonical]
        made = found
    return made


def _row(name: str, changes: Changes, folded: FoldedGraft, before: Mapping[str, Row]) -> Row:
    """One tensor with one graft folded into it. before: the host's rows without that graft, by canonical name."""
    change, graft = changes[name], folded.graft
    host = tuple(_wide(before[key]) for key in change.host)
    like = before.get(name, before[change.host[0]])
    stored = like.name if name in before else like.name.removesuffix("weight") + "bias"
    sources = tuple(Source(graft.lender.name, graft.donor.tensors[key]) for key in change.donors)
    return Row(
        stored, "fold", name, "language", change.shape, like.dtype, sources,
        fold=Fold(graft.name, graft.kind, change.what, host),
    )  # fmt: skip


def _wide(row: Row) -> Row:
    """The row in float32, or in float64 where it is that: what is folded is rounded once, when all is done."""
    return row if row.dtype == "F64" else replace(row, dtype="F32")
