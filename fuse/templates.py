"""Whose chat template the output takes, and whether the host can speak it."""

from collections.abc import Sequence

from fuse.anatomy import Member
from fuse.recipe_yaml import LoadedRecipe
from fuse.verdicts import Verdict

PATH = ("prompt", "template")


def template_verdict(loaded: LoadedRecipe, host: Member, chosen: Member, others: Sequence[Member]) -> Verdict:
    """The verdict on chat templates.

    Raises RecipeError when the recipe takes a template from a member that has none, whose template writes tokens that
    the host does not have, or forgets the images of a host that sees.
    """
    text = _template(chosen)
    if chosen is not host:
        _check_fits(loaded, host, chosen, text)
        return Verdict("chat template", True, f"{chosen.name}'s, as the recipe says")
    differ = [m.name for m in others if _template(m) and _template(m) != text]
    if differ:
        owner = f"{host.name}'s is taken" if text else f"{host.name} has none and the output will have none"
        return Verdict("chat template", False, f"{owner}; {', '.join(differ)} differ")
    return Verdict("chat template", True, "the same wherever there is one" if text else "none")


def _check_fits(loaded: LoadedRecipe, host: Member, chosen: Member, text: str) -> None:
    if not text or chosen.vocabulary is None or host.vocabulary is None:
        raise loaded.error(PATH, f"{chosen.name} has no chat template" if not text else f"{host.name} has no tokenizer")
    known = host.vocabulary.ids
    if loaded.recipe.language.embeddings != "union":
        foreign = sorted(t for t in chosen.vocabulary.added if t in text and t not in known)
        if foreign:
            raise loaded.error(
                PATH, f"{chosen.name}'s template writes {foreign[0]!r}, which {host.name} has no token for",
                hint="`embeddings: union` under language adds it",
            )  # fmt: skip
    if host.sees and "image" not in text:
        raise loaded.error(PATH, f"{chosen.name}'s template has no place for images, and {host.name} can see")


def _template(member: Member) -> str:
    return member.vocabulary.template if member.vocabulary else ""
