"""The licences of everything that an output is made of, and what the strictest of them asks."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse.errors import CheckpointError
from fuse.licence_files import OTHER, UNSTATED, Stated, stated_in
from fuse.licence_terms import terms_of

if TYPE_CHECKING:
    from fuse.fused import Lender
    from fuse.plan import Plan

DONOR = ("config.json", "adapter_config.json", "graft.json", "projector.json")  # what makes a folder one model's own


@dataclass(frozen=True)
class Parent:
    """Something that the output is made of: its name in the plan, how the recipe named it, and what it states."""

    name: str
    origin: str
    stated: Stated


@dataclass(frozen=True)
class RollUp:
    """The licences of all parents together. agreed: the one that all state, "" where they differ or one states none."""

    parents: tuple[Parent, ...]

    @property
    def agreed(self) -> str:
        found = {parent.stated.licence for parent in self.parents}
        return "" if len(found) != 1 or found == {OTHER} else found.pop()

    @property
    def link(self) -> str:
        """Where the text of the agreed licence is, where all parents tell the same place."""
        found = {parent.stated.link for parent in self.parents}
        return found.pop() if self.agreed and len(found) == 1 else ""

    @property
    def named(self) -> bool:
        """The agreed licence is a name that stands beside the hub's `other` in a card."""
        return bool(self.agreed) and any(parent.stated.named for parent in self.parents)

    @property
    def by_licence(self) -> dict[str, list[str]]:
        """The names of the parents, by the licence that they state; "" for those that state none."""
        found: dict[str, list[str]] = {}
        for parent in self.parents:
            found.setdefault(parent.stated.licence, []).append(parent.name)
        return found

    @property
    def strictest(self) -> str:
        """The licence that leaves least room, of those that are stated; "" where none is."""
        stated = [licence for licence in self.by_licence if licence]
        return max(stated, key=lambda licence: terms_of(licence).strictness, default="")

    @property
    def alone(self) -> list[str]:
        """Licences that each want what is made of them to bear them alone, where there are several such."""
        found = [licence for licence in self.by_licence if licence and terms_of(licence).same]
        return found if len(found) > 1 else []


def roll_up(plan: "Plan") -> RollUp:
    """What a plan's members, their adapters and the other lenders state. Reads cards, LICENSE files and configs."""
    found = [Parent(m.name, m.checkpoint.origin, stated_in(m.folder, m.checkpoint.config)) for m in plan.members]
    folders = {m.folder.resolve() for m in plan.members}
    for lender in plan.lenders:
        folder = _folder(lender)
        if lender.places and folder not in folders:
            config = lender.checkpoint.config if lender.checkpoint else None
            found.append(Parent(lender.name, lender.origin, stated_in(folder, config) if folder else Stated()))
    return RollUp(tuple(found))


def _folder(lender: "Lender") -> Path | None:
    """The folder that is this lender's own; None of a single file, whose neighbours say nothing of it."""
    if lender.checkpoint is not None:
        return lender.checkpoint.folder.resolve()
    folders = {file.parent.resolve() for file in lender.files}
    folder = folders.pop() if len(folders) == 1 else None
    return folder if folder and any((folder / name).is_file() for name in DONOR) else None


def licence_lines(plan: "Plan") -> list[str]:
    """A line per licence with who states it, and what they mean together; for `fuse plan` and `fuse push`."""
    return roll_up_lines(roll_up(plan))


def roll_up_lines(licences: RollUp) -> list[str]:
    """As `licence_lines`, of licences that were read before."""
    told = [f"  {', '.join(names)}: {_asks(licence)}" for licence, names in licences.by_licence.items()]
    return [*told, *(f"  {'=' if licences.agreed else '!'} {line}" for line in verdict_lines(licences))]


def verdict_lines(licences: RollUp) -> list[str]:
    """What the licences mean together, a sentence each."""
    unstated, strictest = licences.by_licence.get("", []), licences.strictest
    if licences.agreed:
        return [f"the output's card says {licences.agreed}, as every parent does"]
    lines = []
    if strictest:
        why = (
            "not all parents state the same"
            if len(licences.by_licence) > 1
            else "of a licence that the hub has no word for"
        )
        of = " and ".join(licences.by_licence[strictest])
        lines.append(f"the output's card says {OTHER}: {why}; the strictest that is stated is {strictest} of {of}: "
                     f"{terms_of(strictest).asks}")  # fmt: skip
    else:
        lines.append(f"the output's card says {OTHER}: no parent states a licence")
    if licences.alone:
        each = " and ".join(f"{licence} of {', '.join(licences.by_licence[licence])}" for licence in licences.alone)
        lines.append(f"{each} each want what is made of them under the same licence, which only one can be")
    if unstated and strictest:
        lines.append(f"what {', '.join(unstated)} allow{'s' * (len(unstated) == 1)} is not known: ask before you share")
    return lines


def _asks(licence: str) -> str:
    return f"{licence} ({terms_of(licence).asks})" if licence else UNSTATED


def licences_json(licences: RollUp) -> dict[str, Any]:
    """The roll-up for `fuse plan --json` and fuse.json; "" for what is not stated or not agreed."""
    return {
        "agreed": licences.agreed,
        "strictest": licences.strictest,
        "parents": [
            {"name": p.name, "origin": p.origin, **asdict(p.stated),
             "asks": terms_of(p.stated.licence).asks if p.stated.licence else ""}
            for p in licences.parents
        ],
    }  # fmt: skip


def read_licences(told: Any, where: object) -> RollUp | None:
    """The roll-up that fuse.json holds under `licences`, as `licences_json` wrote it; None where it holds none.

    Raises CheckpointError for one of another form.
    """
    if told is None:
        return None
    rows = told.get("parents") if isinstance(told, dict) else None
    if not isinstance(rows, list) or not rows or not all(map(_is_parent, rows)):
        raise CheckpointError("licences is not a table of parents", where=where)
    return RollUp(
        tuple(Parent(r["name"], r["origin"], Stated(r["licence"], r["link"], r["file"], r["named"])) for r in rows)
    )


def _is_parent(row: Any) -> bool:
    words = ("name", "origin", "licence", "link", "file")
    return isinstance(row, dict) and all(type(row.get(key)) is str for key in words) and type(row.get("named")) is bool
