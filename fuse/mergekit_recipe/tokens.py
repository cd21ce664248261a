"""`tokenizer_source` and `chat_template` of a mergekit recipe: whose rows and prompt, and where fuse means another."""

from collections import Counter
from collections.abc import Mapping, Sequence

from fuse.anatomy import Member
from fuse.mergekit_recipe.given import Given
from fuse.mergekit_recipe.models import Reference, reference
from fuse.recipe_mistakes import Path_
from fuse.sizes import counted


def tokenizer_source(given: Given) -> tuple[Path_, str | Reference]:
    """Where the source of the tokenizer stands, and `base`, `union`, a model, or "" where the recipe says nothing."""
    alone, table = given.data.get("tokenizer_source"), given.data.get("tokenizer")
    path: Path_ = ("tokenizer_source",)
    if alone is not None and table is not None:
        raise given.error(("tokenizer",), "the recipe has a tokenizer_source, too", "leave one of them out")
    if table is not None:
        path = ("tokenizer", "source")
        alone = given.table(("tokenizer",), table, ("source",)).get("source", "union")
    if alone is None or alone in ("base", "union"):
        return path, alone or ""
    return path, reference(given, path, alone)


def check_tokens(given: Given, path: Path_, host: Member, inputs: Sequence[Member], *, union: bool) -> None:
    """RecipeError where mergekit would make up rows of tokens that some models lack, and merge them.

    fuse merges the rows of tokens that all have, and takes the others from one member: the same where only one has
    them. inputs: whose embeddings are merged, the base among them.
    """
    if any(member.vocabulary is None for member in (host, *inputs)):
        lacking = next(member for member in (host, *inputs) if member.vocabulary is None)
        raise given.error(path, f"{lacking.name} has no tokenizer")
    known = [member.vocabulary.ids.keys() for member in inputs if member.vocabulary]
    wanted = set().union(*known) if union else set(host.vocabulary.ids if host.vocabulary else ())
    torn = [token for token in wanted if 0 < sum(token in ids for ids in known) < len(known)]
    apart = [token for token in torn if not _of_one(token, host, inputs)]
    if not apart:
        return
    one = min(apart)
    have = " and ".join(m.name for m in inputs if m.vocabulary and one in m.vocabulary.ids)
    lack = " and ".join(m.name for m in inputs if m.vocabulary and one not in m.vocabulary.ids)
    told = f"{counted(len(apart), 'token')} such as {one!r}, which {have} have and {lack} lacks"
    raise given.error(
        path, f"mergekit makes up rows for {told}, and merges them; fuse takes such a row from one member",
        "write a recipe with members and language, whose `embeddings` says from whom",
    )  # fmt: skip


def _of_one(token: str, host: Member, inputs: Sequence[Member]) -> bool:
    """Only one has the token, and fuse takes the row from there: the host, or else a guest whose token comes along."""
    holders = [member for member in inputs if member.vocabulary and token in member.vocabulary.ids]
    mine = host.vocabulary is not None and token in host.vocabulary.ids
    return len(holders) == 1 and (holders[0] is host or not mine)


def template(given: Given, members: Mapping[str, Member], host: str) -> str | None:
    """The member whose chat template the output takes, None for the host's own.

    `auto` is the most frequent template. Raises RecipeError for a template of mergekit's or one that is written out.
    """
    value = given.data.get("chat_template")
    if value is None:
        return None
    if value != "auto":
        raise given.error(
            ("chat_template",), "fuse takes the template of a member, or the most frequent one with `auto`",
            "put another one into the output's chat_template.jinja",
        )  # fmt: skip
    texts = {name: m.vocabulary.template.strip() for name, m in members.items() if m.vocabulary}
    counts = Counter(text for text in texts.values() if text)
    if not counts or texts.get(host) == (most := counts.most_common(1)[0][0]):
        return None
    return next(name for name, text in texts.items() if text == most)
