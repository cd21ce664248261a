"""Which rows of two folders' tables belong to the same token, and what a recipe's `embeddings` makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fuse.align.tokens.folder import Speaker
from fuse.errors import CheckpointError
from fuse.new_tokens import new_tokens, rows_needed
from fuse.rows import match_rows, shared_rows
from fuse.verdicts import check_core, judge

Kind = Literal["same", "added", "different"]


@dataclass(frozen=True)
class Alignment:
    """Two vocabularies, the host's and another's.

    kind: `same` ids for the same tokens; `added`: the same but for added tokens, as `fuse merge` understands it;
    `different`, which it refuses, and why says so. same_ids: tokens at the same id in both; other_ids: in both, at two
    ids. only_host, only_other: tokens of one alone, those of them that are added tokens apart. own: tokens of the
    host's own vocabulary, not added ones, that the other does not have at the same id. rows: rows of the host's
    table whose token the other stores too. refused: why the language models cannot be merged for another reason, "" if
    they can.
    """

    kind: Kind
    same_ids: int
    other_ids: int
    only_host: int
    only_other: int
    added_only_host: tuple[str, ...]
    added_only_other: tuple[str, ...]
    own: int
    rows: int
    why: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one choice of `embeddings` gives, in rows of the output's embedding.

    merged: rows that the folders give together (of a folder's name: that one alone); kept: the host's; added: rows of
    tokens that only guests have. refused: why there is no output.
    """

    choice: str
    rows: int
    merged: int
    kept: int
    added: int
    refused: str = ""


def align(host: Speaker, other: Speaker) -> Alignment:
    """Compare the vocabularies of two folders, token by token."""
    mine, theirs = host.vocabulary, other.vocabulary
    both = mine.ids.keys() & theirs.ids.keys()
    same = sum(mine.ids[token] == theirs.ids[token] for token in both)
    why = _why_different(host, other)
    kind = "same" if mine.digest == theirs.digest else "different" if why else "added"
    refused = "" if why else _refused(host, other)
    return Alignment(
        kind, same, len(both) - same, len(mine.ids) - len(both), len(theirs.ids) - len(both),
        tuple(sorted(mine.added - theirs.ids.keys(), key=mine.ids.__getitem__)),
        tuple(sorted(theirs.added - mine.ids.keys(), key=theirs.ids.__getitem__)),
        sum(theirs.ids.get(token) != row for token, row in mine.ids.items() if token not in mine.added),
        shared_rows(match_rows(mine, host.rows, [(theirs, other.rows)])), why, refused,
    )  # fmt: skip


def _why_different(host: Speaker, other: Speaker) -> str:
    try:
        check_core(host.member, host.vocabulary, other.member, other.vocabulary)
    except CheckpointError as error:
        return error.problem
    return ""


def _refused(host: Speaker, other: Speaker) -> str:
    """Why `fuse merge` refuses the two language models, whatever it makes of their tokens; "" where it does not."""
    fused = next((one.name for one in (host, other) if one.fused), None)
    if fused is not None:
        return f"{fused} is a fused folder, which is no member of a recipe"
    try:
        judge(host.member, [other.member], ())
    except CheckpointError as error:
        return error.problem
    if host.width != other.width:
        return f"their rows are of {host.width:,} and {other.width:,} numbers"
    return ""


def outcomes(host: Speaker, others: Sequence[Speaker], base: Speaker | None) -> list[Outcome]:
    """What `merge`, `union`, `base` (where one is given) and each folder's name give, by the rules of `fuse merge`.

    others: folders whose vocabulary is not different and whose language model can be merged; all of them take part,
    and the base as task arithmetic reads it.
    """
    sources = [*others, *([base] if base else [])]
    found = [_merge(host, sources, "merge"), _union(host, others, sources)]
    found += [_merge(host, [base], "base")] if base else []
    found += [_merge(host, [other], other.name) for other in others]
    return [*found, Outcome(host.name, host.rows, host.rows, 0, 0)]


def _merge(host: Speaker, sources: Sequence[Speaker], choice: str) -> Outcome:
    merged = _merged(host, sources)
    if not merged:
        return Outcome(choice, host.rows, 0, host.rows, 0, "no token is shared by all")
    return Outcome(choice, host.rows, merged, host.rows - merged, 0)


def _merged(host: Speaker, sources: Sequence[Speaker]) -> int:
    """Rows that all give: those of shared tokens, or all, padding too, where tokens and tables are alike."""
    if all(one.vocabulary.digest == host.vocabulary.digest and one.rows == host.rows for one in sources):
        return host.rows
    return shared_rows(match_rows(host.vocabulary, host.rows, [(one.vocabulary, one.rows) for one in sources]))


def _union(host: Speaker, others: Sequence[Speaker], sources: Sequence[Speaker]) -> Outcome:
    try:
        tokens = new_tokens(host.member, [other.member for other in others])
    except CheckpointError as error:
        return Outcome("union", host.rows, 0, host.rows, 0, error.problem)
    merged, rows = _merged(host, sources), rows_needed(host.rows, tokens)
    if not merged:
        return Outcome("union", host.rows, 0, host.rows, 0, "no token is shared by all")
    return Outcome("union", rows, merged, rows - merged - len(tokens), len(tokens))
