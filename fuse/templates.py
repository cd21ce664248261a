"""Whose chat template the output takes, and whether the host can speak it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fuse.anatomy import Member
from fuse.fusable import kind_of
from fuse.recipe_yaml import LoadedRecipe
from fuse.verdicts import Verdict

PATH = ("prompt", "template")
PROMPTS = Path(__file__).parent / "prompts"
LLAMA_3, CHATML = "<|eot_id|>", "<|im_start|>"  # tokens by which prompts of these kinds are known


def template_verdict(loaded: LoadedRecipe, host: Member, chosen: Member, others: Sequence[Member]) -> Verdict:
    """The verdict on chat templates.

    Raises RecipeError when the recipe takes a template from a member that has none, whose template writes tokens that
    the host does not have, or forgets the images of a host that sees.
    """
    text = _template(chosen)
    if chosen is not host:
        _check_fits(loaded, host, chosen, text, sees=host.sees)
        return Verdict("chat template", True, f"{chosen.name}'s, as the recipe says")
    differ = [m.name for m in others if _template(m) and _template(m) != text]
    if differ:
        owner = f"{host.name}'s is taken" if text else f"{host.name} has none and the output will have none"
        return Verdict("chat template", False, f"{owner}; {', '.join(differ)} differ")
    return Verdict("chat template", True, "the same wherever there is one" if text else "none")


def fused_template(
    loaded: LoadedRecipe, host: Member, members: Mapping[str, Member], seeing: Sequence[Member], lent: Sequence[str]
) -> tuple[Member, str, Verdict]:
    """Whose template a fused folder takes, its text, and the verdict.

    The one that the recipe names, else the host's, else that of the first member of `seeing` (members with a branch);
    those with a place for images come first. In the others the processor puts images before the words: our choice.
    Original-LLaVA members and PaliGemma, whose prompts only their code knows, have ours. lent: tokens that the output
    has beyond the host's. Raises RecipeError for a template that is not there or writes tokens that nobody has.
    """
    named = loaded.recipe.prompt.template
    if named is not None:
        chosen = members[named]
        text = template_of(chosen)
        _check_fits(loaded, host, chosen, text, sees=False, lent=lent)
        return chosen, text, Verdict("chat template", _sees(text), f"{named}'s, as the recipe says{_plain(text)}")
    candidates = [(member, template_of(member)) for member in (host, *seeing)]
    usable = [(m, text) for m, text in candidates if text and not _foreign(host, m, text, lent)]
    member, text = next((found for found in usable if _sees(found[1])), usable[0] if usable else (host, ""))
    if not text:
        return host, "", Verdict("chat template", False, "no branch has one that the host can speak; none is written")
    why = "" if member is host else f", as {host.name} has none{' with a place for images' if _sees(text) else ''}"
    return member, text, Verdict("chat template", member is host and _sees(text), f"{member.name}'s{why}{_plain(text)}")


def _sees(text: str) -> bool:
    return "image" in text


def _plain(text: str) -> str:
    return "" if _sees(text) else "; it has no place for images, which go before the words"


def template_of(member: Member) -> str:
    """The member's template, or ours where only its code knows how it is spoken to."""
    name = _built_in(member)
    return (PROMPTS / f"{name}.jinja").read_text(encoding="utf-8") if name else _template(member)


def _built_in(member: Member) -> str:
    if member.family.model_type == "paligemma" and not _template(member):
        return "paligemma"
    if member.family.native:
        return ""
    known = member.vocabulary.ids if member.vocabulary is not None else {}
    if member.text.name == "llama" and LLAMA_3 in known:
        return {"mgm": "mgm_llama_3", "slime": "slime_llama3"}.get(kind_of(member), "llava_llama_3")
    if member.text.name == "qwen2" and CHATML in known:
        return "qwen_1_5"
    return {"llama": "vicuna_v1", "mistral": "mistral_instruct"}.get(member.text.name, "")


def _check_fits(
    loaded: LoadedRecipe, host: Member, chosen: Member, text: str, *, sees: bool, lent: Sequence[str] | None = None
) -> None:
    if not text or chosen.vocabulary is None or host.vocabulary is None:
        raise loaded.error(PATH, f"{chosen.name} has no chat template" if not text else f"{host.name} has no tokenizer")
    told = lent is None and loaded.recipe.language.embeddings == "union"  # a guest, whose tokens come
    if not told and (foreign := _foreign(host, chosen, text, lent or ())):
        raise loaded.error(
            PATH, f"{chosen.name}'s template writes {foreign!r}, which {host.name} has no token for",
            hint="`embeddings: union` under language adds it",
        )  # fmt: skip
    if sees and "image" not in text:
        seer = f"{host.name} can see" if host.sees else "the output can see"
        raise loaded.error(PATH, f"{chosen.name}'s template has no place for images, and {seer}")


def _foreign(host: Member, chosen: Member, text: str, lent: Sequence[str]) -> str:
    """The first added token that the template writes and the output does not have, or ""."""
    if chosen.vocabulary is None or host.vocabulary is None:
        return ""
    known = {*host.vocabulary.ids, *lent}
    return min((t for t in chosen.vocabulary.added if t in text and t not in known), default="")


def _template(member: Member) -> str:
    return member.vocabulary.template if member.vocabulary else ""
