"""A checkpoint that somebody names is opened at once, by config and headers, and held against the first."""

import re
from collections.abc import Collection
from pathlib import Path

from fuse.anatomy import Member, open_member
from fuse.errors import RecipeError, one_line, short
from fuse.fusable import why_no_branch, why_no_host
from fuse.names import mistake_in
from fuse.recipe_new.answers import Named
from fuse.sizes import counted, size_text
from fuse.stores.address import is_store
from fuse.suggest import did_you_mean
from fuse.verdicts import judge

HUB = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
FAR = "is not on this disk, so nothing of it is checked here: `fuse plan` will"


def named(answer: str, taken: Collection[str], *, only: str = "") -> Named:
    """`NAME=PATH`, or a path whose last part becomes the name. only: the name whatever its path is.

    Raises RecipeError for a name or a path that cannot be, CheckpointError for a folder that is no checkpoint.
    """
    before, equals, after = answer.partition("=")
    given = bool(equals) and "/" not in before
    name, path = (before.strip(), after.strip()) if given else ("", answer)
    if not path:
        raise RecipeError("a member is a folder, a hub id org/name or an address such as s3://bucket/folder")
    name = only or name or free_name(path, taken)
    if not only and (wrong := mistake_in(name)):
        raise RecipeError(f"a member cannot be called {short(name)}: {wrong}", hint="NAME=PATH gives it another name")
    if name in taken:
        raise RecipeError(f"{name!r} is the name of another member", hint="NAME=PATH gives it another name")
    return Named(name, path, open_member(name, path, revision=None, relative_to=None) if is_here(path) else None)


def is_here(path: str) -> bool:
    """Whether a path lies on this disk. RecipeError where it does not and names nothing elsewhere either."""
    if is_store(path) or path.startswith("hf://"):
        return False
    if len(path) < 4000 and Path(path).exists():
        return True
    if HUB.fullmatch(path):
        return False
    folder = Path(path).parent
    near = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    hint = did_you_mean(Path(path).name, near) if near else "a hub id is org/name"
    raise RecipeError(f"there is no folder {short(path)}", hint=hint if len(hint) < 200 else "")


def free_name(path: str, taken: Collection[str]) -> str:
    """A name for a path that no other member has: letters and digits of its last part."""
    word = re.sub(r"[^A-Za-z0-9_]+", "_", path.rstrip("/").rpartition("/")[2]).strip("_").lower()[:40] or "member"
    word = word if word[0].isalpha() and not mistake_in(word) else f"m_{word}"
    return next(name for name in (word, *(f"{word}_{n}" for n in range(2, 99))) if name not in taken)


def told(one: Named) -> str:
    """What a checkpoint is, in a line."""
    if one.member is None:
        return f"{one.name}: {one_line(one.path)} {FAR}"
    return f"{one.name}: {kind_told(one.member)}, {size_text(one.member.checkpoint.nbytes)}"


def kind_told(member: Member) -> str:
    """`llava on llama, 4 layers, hidden 128, sees`."""
    family, basis = member.family.model_type, member.basis
    on = f" on {basis.family}" if family != basis.family else ""
    told = f"{family}{on}, {counted(basis.layers, 'layer')}, hidden {basis.hidden_size}"
    return one_line(f"{told}, {'sees' if member.sees else 'reads text only'}")


def check_first(one: Named, want: str) -> None:
    """RecipeError where the first member cannot be what it is wanted for."""
    if want in {"fuse", "expert"} and one.sees is False:
        raise RecipeError(f"{one.name} has no encoder", hint="name the VLM first" if want == "expert" else "name a VLM")
    if one.member is not None and want in {"fuse", "encoder", "graft"} and (why := why_no_host(one.member)):
        raise RecipeError(why)
    check_branch(one, want)


def check_next(one: Named, first: Named, want: str) -> None:
    """RecipeError or CheckpointError where a further member does not fit the first."""
    if want == "fuse" and one.sees is False:
        raise RecipeError(f"{one.name} has no encoder", hint="a text expert is another recipe: want `expert`")
    check_branch(one, want)
    check_base(one, first)


def check_base(one: Named, first: Named) -> None:
    """CheckpointError where two checkpoints are not of one base, as far as both can be looked at."""
    if one.member is not None and first.member is not None:
        judge(first.member, [one.member], ())


def check_branch(one: Named, want: str) -> None:
    if want == "fuse" and one.member is not None and (why := why_no_branch(one.member)):
        raise RecipeError(why)
