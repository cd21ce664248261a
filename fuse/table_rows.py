"""Rows of a plan for embedding tables and heads: matched by token, and extended by the tokens that the host lacks."""

from collections.abc import Sequence
from dataclasses import replace

from fuse.anatomy import Member
from fuse.errors import CheckpointError
from fuse.new_tokens import NewToken, rows_needed
from fuse.parameters import Parameters
from fuse.plan import Row, Source
from fuse.recipe_yaml import LoadedRecipe
from fuse.rows import Added, Run, match_rows, shared_rows
from fuse.safetensors_header import TensorEntry
from fuse.sizes import counted
from fuse.suggest import did_you_mean
from fuse.tensor_rows import TensorRows

PATH = ("language", "embeddings")


def table_row(
    loaded: LoadedRecipe, rows: TensorRows, canonical: str, entry: TensorEntry, parameters: Parameters,
    position: float, tokens: Sequence[NewToken], members: Sequence[str],
) -> Row:  # fmt: skip
    """The row of the embedding or the head, as `language.embeddings` says. members: who gives it where all do."""
    choice, host = loaded.recipe.language.embeddings, rows.owner
    if choice == host.name:
        return _extend(rows, rows.copy("language", canonical, entry, f"embeddings: {choice}"), entry, tokens)
    if choice not in {"merge", "union"}:
        known = {**rows.members, **({"base": rows.base} if rows.base else {})}
        if choice not in known:
            near = did_you_mean(choice, [*known, "merge", "union"])
            raise loaded.error(PATH, f"{choice!r} is not a choice ({near})")
        given = rows.source(known[choice], "language", canonical)
        row = rows.row(
            "merge", "language", canonical, entry, sources=(given,), method="linear",
            parameters={"weights": [1.0], "normalize": True}, note=f"embeddings: {choice}",
        )  # fmt: skip
        return _match(rows, row, entry, [known[choice]], tokens)
    sources = [rows.source(rows.members[name], "language", canonical) for name in members]
    base = rows.base_source(parameters, "language", canonical)
    row = rows.row(
        "merge", "language", canonical, entry, sources=tuple(sources), base=base, method=parameters.merge.method,
        parameters=parameters.at(canonical, position, members),
    )  # fmt: skip
    who = [rows.members[name] for name in members]
    return _match(rows, row, entry, [*who, rows.base] if base and rows.base else who, tokens)


def _match(rows: TensorRows, row: Row, entry: TensorEntry, who: list[Member], tokens: Sequence[NewToken]) -> Row:
    """The row as it is when all tables are alike; else with the runs of shared tokens."""
    host = rows.owner
    tables = [s.tensor for s in (*row.sources, row.base) if s is not None]
    for member, table in zip(who, tables, strict=True):
        _check_width(host, member, table, entry)
    if who == [host]:
        return _extend(rows, row, entry, tokens, (Run(0, entry.shape[0], (0,)),))
    for member in (host, *who):
        if member.vocabulary is None:
            raise CheckpointError(
                f"{member.name} has no tokenizer, so its embedding rows cannot be matched by token",
                where=member.folder,
                hint=f"add its tokenizer.json, or keep the host's rows with `embeddings: {host.name}`",
            )
    mine = host.vocabulary
    assert mine is not None
    vocabularies = [m.vocabulary for m in who if m.vocabulary is not None]
    same = all(v.digest == mine.digest for v in vocabularies) and all(t.shape == entry.shape for t in tables)
    if same and not tokens:
        return row
    runs = match_rows(mine, entry.shape[0], [(v, t.shape[0]) for v, t in zip(vocabularies, tables, strict=True)])
    if not runs:
        raise CheckpointError(f"no token is shared by {', '.join(m.name for m in who)}", where=host.folder)
    note = f"{shared_rows(runs):,} of {entry.shape[0]:,} rows matched by token, the others are {host.name}'s"
    row = replace(row, runs=runs, host=Source.of(host, entry), note=_joined(row.note, note))
    return _extend(rows, row, entry, tokens, runs)


def _extend(
    rows: TensorRows, row: Row, entry: TensorEntry, tokens: Sequence[NewToken], runs: tuple[Run, ...] = ()
) -> Row:
    """The row with the tokens that the host lacks; unchanged where they all lie on rows that it has and keeps."""
    host = rows.owner
    stored = host.language[host.text.embedding].shape[0]
    shape = (rows_needed(stored, tokens), *row.shape[1:])
    lent = [token for token in tokens if token.member]
    if not lent and shape[0] == stored:
        return row
    if row.shape[0] != stored:
        raise CheckpointError(
            f"the embedding has {stored} rows and {row.name!r} has {row.shape[0]}, so tokens cannot be added",
            where=host.folder, hint="embeddings: merge adds none",
        )  # fmt: skip
    order, donors = [source.member for source in row.sources], list[Source]()
    for name in dict.fromkeys(token.member for token in lent):
        if name not in order:
            donors.append(rows.source(rows.members[name], "language", row.canonical))
            _check_width(host, rows.members[name], donors[-1].tensor, entry)
            order.append(name)
    added = [Added(t.row, order.index(t.member), t.source_row) for t in lent]
    empty = [Added(t.row, None) for t in tokens if not t.member and t.row >= stored]
    notes = [f"row{'s' * (len(lent) > 1)} of {counted(len(lent), 'new token')}"] if lent else []
    need = "encoder needs" if len(donors) == 1 else "encoders need"
    notes += [f"lent by {', '.join(d.member for d in donors)}, whose {need} them in the prompt"] if donors else []
    notes += [f"{counted(len(empty), 'row')} of zeros for the places of visual tokens"] if empty else []
    return replace(
        row, runs=row.runs or runs, host=Source.of(host, entry), added=tuple(added + empty), donors=tuple(donors),
        shape=shape, note=_joined(row.note, *notes),
    )  # fmt: skip


def _check_width(host: Member, member: Member, table: TensorEntry, entry: TensorEntry) -> None:
    if table.shape[1:] != entry.shape[1:]:
        raise CheckpointError(
            f"tensor {table.name!r} of {member.name} has rows of {list(table.shape[1:])}, "
            f"but {host.name} has {list(entry.shape[1:])}", where=table.file,
        )  # fmt: skip


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
