"""Which members a recipe opens, which of them is the host, and whether the output is the fused class."""

from fuse.adapters.member import adapted
from fuse.anatomy import Member, open_member
from fuse.errors import RecipeError
from fuse.folded import leaves_grafts
from fuse.fusable import why_no_branch, why_no_host
from fuse.fused_options import check_first, check_positions
from fuse.recipe import Location
from fuse.recipe import Member as Given
from fuse.recipe_yaml import LoadedRecipe
from fuse.suggest import did_you_mean, near


def open_named(loaded: LoadedRecipe, path: tuple[str, ...], name: str) -> Member:
    """Open a member, or the base, as the recipe names it; errors point at its line."""
    given = loaded.recipe.base if path == ("base",) else loaded.recipe.members[name]
    assert given is not None
    if given.adapter is None:
        return _open(loaded, path, name, given)
    assert given.base is not None
    base = _open(loaded, (*path, "base"), name, given.base)
    try:
        return adapted(base, given.adapter.path, revision=given.adapter.revision, relative_to=loaded.folder)
    except RecipeError as error:
        raise loaded.error((*path, "adapter"), error.problem, error.hint) from None


def _open(loaded: LoadedRecipe, path: tuple[str, ...], name: str, given: Location | Given) -> Member:
    try:
        return open_member(
            name, given.path, revision=given.revision, relative_to=loaded.folder,
            adapted="name its base too: {base: FOLDER, adapter: FOLDER}",
        )  # fmt: skip
    except RecipeError as error:
        raise loaded.error(path, error.problem, _neighbours(loaded, given.path) or error.hint) from None


def _neighbours(loaded: LoadedRecipe, path: str) -> str:
    """`did you mean: hue`, where a path leads nowhere and a folder of nearly that name lies beside."""
    place = loaded.folder / path
    if "://" in path or len(path) > 255 or not path.isprintable() or place.exists() or not place.parent.is_dir():
        return ""
    found = near(place.name, [one.name for one in place.parent.iterdir() if one.is_dir()], 0.65)
    folder = path.removesuffix(place.name)
    return f"did you mean: {', '.join(folder + name for name in found)}" if found else ""


def why_fused(loaded: LoadedRecipe) -> str:
    """What in the recipe needs the fused class, or "" where a class of transformers may do."""
    recipe = loaded.recipe
    vision = recipe.vision or []
    if leaves_grafts(loaded):
        return "a graft"
    if len(vision) > 1:
        return f"{len(vision)} branches"
    if any(branch.from_ is None for branch in vision):
        return "an encoder branch"
    if any(branch.max_tokens is not None for branch in vision):
        return "max_tokens"
    if any(branch.norm != "none" for branch in vision):
        return "norm"
    return "output.model: fuse" if recipe.output.model == "fuse" else ""


def host_of(loaded: LoadedRecipe, members: dict[str, Member], base: Member | None) -> Member:
    """Whose config, tokenizer and layout the output takes.

    `output.host`, else the member of the first branch that has one, else the first member. Raises RecipeError where
    the branches, the host and the output's class do not go together.
    """
    recipe = loaded.recipe
    _check_class(loaded)
    if recipe.vision is None:
        seeing = [m.name for m in members.values() if m.sees]
        if seeing:
            raise RecipeError(
                f"{' and '.join(seeing)} can see: say whose encoder and projector the output keeps",
                where=loaded.file.name,
                hint=_choices([name for name in seeing if not why_no_branch(members[name])], seeing[0]),
            )
    else:
        _check_branches(loaded, members)
    eyes = [members[branch.from_] for branch in recipe.vision or [] if branch.from_]
    first = eyes[0] if eyes else next(iter(members.values()))
    host = member_of(loaded, ("output", "host"), recipe.output.host, members, first, base)
    if why_fused(loaded):
        _check_fused(loaded, members, host)
    elif eyes and host is not first:
        raise loaded.error(
            ("output", "host"), f"{host.name} is not the member whose encoder is kept ({first.name})",
            hint="`model: fuse` under output keeps one member's encoder on another's language model",
        )  # fmt: skip
    elif recipe.vision is not None and not eyes and host.sees:
        raise loaded.error(("vision",), f"is empty, but {host.name} can see", "name a text-only output.host")
    return host


def _choices(fusable: list[str], one: str) -> str:
    """What `vision` may be where members see: several encoders fused, one of them kept, none."""
    both = f"vision: [{', '.join(fusable)}], " if len(fusable) > 1 else ""
    return f"{both}vision: [{one}], or vision: [] and a text-only output.host"


def _check_class(loaded: LoadedRecipe) -> None:
    recipe = loaded.recipe
    why = why_fused(loaded)
    if recipe.output.model == "native" and why:
        raise loaded.error(("output", "model"), f"native has no place for {why}", "leave it out, or write fuse")
    if recipe.output.model == "fuse" and not recipe.vision and not leaves_grafts(loaded):
        raise loaded.error(("output", "model"), "fuse needs a branch in vision, or a graft")


def _check_branches(loaded: LoadedRecipe, members: dict[str, Member]) -> None:
    """Every branch is a member that sees, or an encoder with a name of its own; none comes twice."""
    seen: set[str] = set()
    for i, branch in enumerate(loaded.recipe.vision or []):
        title = branch.title
        if branch.from_ is None and (title in members or title == "base"):
            raise loaded.error(("vision", i, "name"), f"{title!r} is the name of a member")
        if branch.from_ is not None and branch.from_ not in members:
            near = did_you_mean(branch.from_, members)
            raise loaded.error(("vision", i), f"{branch.from_!r} is not a member ({near})")
        if branch.from_ is not None and not members[branch.from_].sees:
            raise loaded.error(("vision", i), f"{branch.from_} has no encoder")
        if title in seen:
            raise loaded.error(("vision", i), f"{title} is in vision twice")
        seen.add(title)
    check_first(loaded)


def _check_fused(loaded: LoadedRecipe, members: dict[str, Member], host: Member) -> None:
    for i, branch in enumerate(loaded.recipe.vision or []):
        if branch.from_ is not None and (why := why_no_branch(members[branch.from_])):
            raise loaded.error(("vision", i), why)
    check_positions(loaded, host)
    if why := why_no_host(host):
        path = ("output", "host") if loaded.recipe.output.host else ("vision",)
        raise loaded.error(path, why)


def member_of(
    loaded: LoadedRecipe, path: tuple[str, ...], name: str | None, members: dict[str, Member], default: Member,
    base: Member | None = None,
) -> Member:  # fmt: skip
    """The member that the recipe names at `path`, or the default where it names none."""
    known = members | ({"base": base} if base else {})
    if name is None:
        return default
    if name not in known:
        raise loaded.error(path, f"{name!r} is not a member ({did_you_mean(name, known)})")
    return known[name]
