"""What a recipe's branches ask for among the others (separator, positions, norm), checked and counted in tokens."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fuse import strict_json
from fuse.anatomy import Member
from fuse.branches.options import no_shared_positions, why_not_first
from fuse.errors import CheckpointError, in_a_line
from fuse.fusable import host_type
from fuse.new_tokens import NewToken, extended_tokenizer
from fuse.recipe_yaml import LoadedRecipe


def check_first(loaded: LoadedRecipe) -> None:
    """RecipeError where the first branch asks for what only a later one can have."""
    vision = loaded.recipe.vision or []
    if vision and (found := why_not_first(vision[0].model_dump())):
        raise loaded.error(("vision", 0, found[0]), found[1], "it belongs to a later branch")


def check_positions(loaded: LoadedRecipe, host: Member) -> None:
    """RecipeError where branches share positions and the host's are not numbers in a row."""
    for i, branch in enumerate(loaded.recipe.vision or []):
        if branch.positions == "shared" and (why := no_shared_positions(host_type(host))):
            raise loaded.error(("vision", i, "positions"), why, "leave it out")


def separators(
    loaded: LoadedRecipe, host: Member, tokens: Sequence[NewToken], members: Mapping[str, Member],
    placeholders: Sequence[str],
) -> Mapping[str, tuple[int, ...]]:  # fmt: skip
    """The ids of every branch's separator, by branch: what the output's tokenizer makes of it without special tokens.

    tokens: what the output's tokenizer has and the host's has not. placeholders: tokens that stand for images. Raises
    RecipeError for a separator that holds one, that gives no token, or that the tokenizer does not know;
    CheckpointError where the host's tokenizer.json does not load.
    """
    vision = loaded.recipe.vision or []
    if all(branch.separator is None for branch in vision):
        return {}
    tokenizer, unknown = _tokenizer(host, tokens, members)
    found: dict[str, tuple[int, ...]] = {}
    for i, branch in enumerate(vision):
        text = branch.separator
        if text is None:
            continue
        at = ("vision", i, "separator")
        if held := next((token for token in placeholders if token in text), ""):
            raise loaded.error(at, f"{text!r} holds {held!r}, which stands for an image", "words or signs separate")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise loaded.error(at, f"{text!r} gives no token of {host.name}'s tokenizer", 'such as "\\n"')
        if unknown in ids:
            raise loaded.error(at, f"{text!r} holds what {host.name}'s tokenizer does not know", 'such as "\\n"')
        found[branch.title] = tuple(ids)
    return found


def _tokenizer(host: Member, tokens: Sequence[NewToken], members: Mapping[str, Member]) -> tuple[Any, int | None]:
    """The output's tokenizer, and the id that it gives to what it does not know, if it has one."""
    from tokenizers import Tokenizer

    file = host.file("tokenizer.json")
    folders = {m.name: m.file("tokenizer.json").parent for m in members.values()}
    data = extended_tokenizer(strict_json.read_object(file), tokens, folders)
    data |= {"padding": None, "truncation": None}
    try:
        tokenizer = Tokenizer.from_str(json.dumps(data))
    except MemoryError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"the tokenizer does not load: {in_a_line(error)}", where=file) from None
    model = data["model"]
    unknown = model.get("unk_id")
    return tokenizer, tokenizer.token_to_id(str(model["unk_token"])) if model.get("unk_token") else unknown
