"""Which members a recipe opens, and which of them is the host."""

from fuse.anatomy import Member, open_member
from fuse.errors import RecipeError
from fuse.recipe_yaml import LoadedRecipe
from fuse.suggest import did_you_mean


def open_named(loaded: LoadedRecipe, path: tuple[str, ...], name: str) -> Member:
    """Open a member, or the base, as the recipe names it; errors point at its line."""
    given = loaded.recipe.base if path == ("base",) else loaded.recipe.members[name]
    assert given is not None
    try:
        return open_member(name, given.path, revision=given.revision, relative_to=loaded.folder)
    except RecipeError as error:
        raise loaded.error(path, error.problem, error.hint) from None


def host_of(loaded: LoadedRecipe, members: dict[str, Member], base: Member | None) -> Member:
    """Whose config, tokenizer and layout the output takes: `output.host`, else the member that sees, else the first."""
    recipe = loaded.recipe
    seeing = [m.name for m in members.values() if m.sees]
    if recipe.vision is None:
        if seeing:
            raise RecipeError(
                f"{' and '.join(seeing)} can see: say whose encoder and projector the output keeps",
                where=loaded.file.name,
                hint=f"vision: [{seeing[0]}], or vision: [] and a text-only output.host",
            )
        first = next(iter(members.values()))
        return member_of(loaded, ("output", "host"), recipe.output.host, members, first, base)
    for i, branch in enumerate(recipe.vision):
        if branch.from_ not in members:
            near = did_you_mean(branch.from_, members)
            raise loaded.error(("vision", i), f"{branch.from_!r} is not a member ({near})")
        if not members[branch.from_].sees:
            raise loaded.error(("vision", i), f"{branch.from_} has no encoder")
    if len(recipe.vision) > 1:
        raise loaded.error(("vision", 1), "this version keeps one encoder; several need the fused model class")
    first = members[recipe.vision[0].from_] if recipe.vision else next(iter(members.values()))
    host = member_of(loaded, ("output", "host"), recipe.output.host, members, first, base)
    if recipe.vision and host is not first:
        raise loaded.error(("output", "host"), f"{host.name} is not the member whose encoder is kept ({first.name})")
    if not recipe.vision and host.sees:
        raise loaded.error(("vision",), f"is empty, but {host.name} can see", "name a text-only output.host")
    return host


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
