"""Tokens that the host lacks get rows of its tables and places in its tokenizer.

They are the added tokens of guests (`embeddings: union`, and members whose eyes a fused folder has) and placeholders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.anatomy import Member
from fuse.errors import CheckpointError


@dataclass(frozen=True)
class NewToken:
    """A token that the output has and the host has not, its row there, and whose row it takes.

    member: "" for a token that takes no row: on a row of the host's padding it keeps what is there, behind the table it
    is zero.
    """

    token: str
    row: int
    member: str = ""
    source_row: int = 0


NO_UNION = "embeddings: merge adds none"


def new_tokens(
    host: Member, guests: Sequence[Member], *, branches: Sequence[Member] = (), empty: Sequence[str] = (),
    hint: str = NO_UNION,
) -> tuple[NewToken, ...]:  # fmt: skip
    """The added tokens of the guests that the host does not know, each from the first guest that has it.

    They take the host's rows that no token owns (padding), lowest first, and then rows behind the table: our choice.
    branches: members that lend their eyes; they lend the rows of their added tokens as far as they store them. empty:
    further tokens, which take no row. Raises CheckpointError where the host's tokenizer cannot be extended, or a row
    that a guest should lend is not stored.
    """
    if host.vocabulary is None or host.vocabulary.source != "tokenizer.json":
        raise CheckpointError("tokens can only be added to a tokenizer.json", where=host.folder, hint=hint)
    stored = host.language[host.text.embedding].shape[0]
    taken, found = set(host.vocabulary.ids.values()) | _special_ids(host), dict[str, NewToken]()
    free = (row for row in range(stored + (1 << 20)) if row not in taken)
    strict = {guest.name for guest in guests}
    for guest in {m.name: m for m in (*guests, *branches)}.values():
        if guest.vocabulary is None:
            continue
        ids = guest.vocabulary.ids
        for token in sorted(guest.vocabulary.added - host.vocabulary.ids.keys() - found.keys(), key=ids.__getitem__):
            if ids[token] >= guest.language[guest.text.embedding].shape[0]:
                if guest.name not in strict:
                    continue  # its model never could read the token
                raise CheckpointError(
                    f"token {token!r} of {guest.name} has id {ids[token]}, and no such row is stored",
                    where=guest.folder,
                )
            found[token] = NewToken(token, next(free), guest.name, ids[token])
    for token in empty:
        if token not in found and token not in host.vocabulary.ids:
            found[token] = NewToken(token, next(free))
    return tuple(found.values())


def _special_ids(host: Member) -> set[int]:
    """Ids that the host's configs give a meaning (image_token_index, eos_token_id ...), with or without a token."""
    found: set[int] = set()
    generation = host.folder / "generation_config.json"
    todo: list[Any] = [host.checkpoint.config, strict_json.read_object(generation) if generation.exists() else {}]
    while todo:
        for key, value in todo.pop().items():
            if isinstance(value, dict):
                todo.append(value)
            elif key.endswith(("_token_id", "_token_index")):
                found |= {n for n in (value if isinstance(value, list) else [value]) if type(n) is int}
    return found


def rows_needed(stored: int, tokens: Sequence[NewToken]) -> int:
    """Rows of the output's tables: the host's, and more where the new tokens do not fit."""
    return max([stored, *(token.row + 1 for token in tokens)])


def extended_tokenizer(
    tokenizer: dict[str, Any], tokens: Sequence[NewToken], folders: dict[str, Path]
) -> dict[str, Any]:
    """The host's tokenizer.json with the new tokens, each described as its guest describes it."""
    rows = [*(tokenizer.get("added_tokens") or []), *(_description(t, folders.get(t.member)) for t in tokens)]
    return {**tokenizer, "added_tokens": sorted(rows, key=lambda row: row["id"])}


def extended_decoder(config: dict[str, Any], tokenizer: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json in agreement with an extended tokenizer.json, where it lists the added tokens too."""
    if "added_tokens_decoder" not in config:
        return config
    rows = {str(row["id"]): {k: v for k, v in row.items() if k != "id"} for row in tokenizer["added_tokens"]}
    return {**config, "added_tokens_decoder": {**rows, **config["added_tokens_decoder"]}}


def _description(token: NewToken, folder: Path | None) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    if folder is not None and (folder / "tokenizer.json").exists():
        rows = strict_json.read_object(folder / "tokenizer.json").get("added_tokens") or []
        plain |= next((row for row in rows if row["content"] == token.token), {})
    return {**plain, "id": token.row, "content": token.token}
