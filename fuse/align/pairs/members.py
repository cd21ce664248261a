"""The members whose pairs are put in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fuse.align.encoders.compare import MOST
from fuse.align.tokens.folder import Speaker, names_of, open_speaker
from fuse.anatomy import Member, open_member
from fuse.errors import CheckpointError, RecipeError
from fuse.names import mistake_in


@dataclass(frozen=True)
class One:
    """A member by the name it is told by. named: its name in recipes. location: where it is, a path from the root."""

    name: str
    named: str
    location: str
    member: Member
    speaker: Speaker | None


def open_all(locations: Sequence[str]) -> list[One]:
    """Two folders or more. Raises RecipeError for fewer, for one that is given twice, and what `open_member` raises."""
    where = [str(Path(one).resolve()) if Path(one).exists() else one for one in locations]
    if len(where) < 2:
        raise RecipeError("pairs are of two members or more", hint="fuse inspect pairs A B --base BASE")
    if len(where) > MOST:
        raise RecipeError(f"{len(where):,} members are more than the {MOST} that are compared at once")
    twice = next((given for number, given in enumerate(locations) if where[number] in where[:number]), None)
    if twice is not None:
        raise RecipeError(f"{twice!r} is given twice")
    found = []
    for number, (name, given) in enumerate(zip(names_of(where), where, strict=True)):
        named = f"member{number + 1}" if mistake_in(name) else name
        member = open_member(named, given, revision=None, relative_to=None)
        found.append(One(name, named, given, member, _speaker(name, given)))
    return found


def _speaker(name: str, location: str) -> Speaker | None:
    """None where fuse reads no tokenizer there."""
    try:
        return open_speaker(name, location)
    except CheckpointError:
        return None
