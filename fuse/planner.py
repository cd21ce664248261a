"""Makes the plan: opens the members, asks whether they fit, and gives every tensor its row or its reason."""

from collections.abc import Sequence
from dataclasses import replace

from fuse.anatomy import Member
from fuse.errors import CheckpointError
from fuse.host import host_of, member_of, open_named
from fuse.methods.table import METHODS
from fuse.new_tokens import NewToken, new_tokens, rows_needed
from fuse.parameters import Parameters, layer_position, stack_depths
from fuse.plan import Drop, Plan, Row, Source, shard, unaccounted
from fuse.recipe import Merge
from fuse.recipe_yaml import LoadedRecipe
from fuse.rows import Added, match_rows, shared_rows
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry
from fuse.suggest import did_you_mean
from fuse.templates import template_verdict
from fuse.verdicts import judge, judge_eyes

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def make_plan(loaded: LoadedRecipe) -> Plan:
    """The plan of a recipe.

    Raises RecipeError where the recipe asks for what cannot be, CheckpointError where a member is broken or the
    members do not fit together.
    """
    recipe = loaded.recipe
    members = {name: open_named(loaded, ("members", name), name) for name in recipe.members}
    base = open_named(loaded, ("base",), "base") if recipe.base else None
    host = host_of(loaded, members, base)
    language = Parameters(loaded, ("language",), recipe.language, list(members))
    _check_method(loaded, ("language",), recipe.language, language, base)
    takes_part = [members[name] for name in language.members]
    rows_of = [members[recipe.language.embeddings]] if recipe.language.embeddings in members else []
    template = member_of(loaded, ("prompt", "template"), recipe.prompt.template, members, host)
    concerned = {m.name: m for m in (base, *takes_part, *rows_of) if m is not None and m is not host}
    others = list(concerned.values())
    verdicts = [*judge(host, others, recipe.language.accept), template_verdict(loaded, host, template, others)]
    planner = _Rows(loaded, members, base, host)
    if recipe.language.embeddings == "union":
        planner.new_tokens = new_tokens(host, [m for m in takes_part if m is not host])
    rows = planner.rows(language)
    everyone = [*([base] if base else []), *members.values()]
    drops = planner.drops(everyone, rows, language)
    for name in members:
        idle = name not in {host.name, template.name} and not any(s.member == name for row in rows for s in row.reads)
        if idle:
            raise loaded.error(("members", name), "takes part in nothing", hint="give it a weight or leave it out")
    if lost := unaccounted(rows, drops, everyone):
        raise RuntimeError(f"{len(lost)} tensors are unaccounted for, the first is {lost[0]}")
    return Plan(
        rows=tuple(rows), drops=tuple(drops), verdicts=tuple(verdicts), members=tuple(everyone), host=host,
        shards=shard(rows, recipe.output.shard_size), recipe_text=loaded.text, template=template,
        recipe_file=loaded.file, dtype=recipe.output.dtype, new_tokens=planner.new_tokens,
    )  # fmt: skip


def _check_method(
    loaded: LoadedRecipe, section: tuple[str | int, ...], merge: Merge, parameters: Parameters, base: Member | None
) -> None:
    row = METHODS[merge.method]
    count = len(parameters.members)
    if row.base == "required" and base is None:
        raise loaded.error((*section, "method"), f"{merge.method} needs a base", hint="add `base:` to the recipe")
    low, high = row.inputs
    if count < low or (high is not None and count > high):
        wanted = str(low) if low == high else f"{low} or more"
        raise loaded.error((*section, "method"), f"{merge.method} takes {wanted} members, not {count}")


class _Rows:
    """The rows of one plan; holds what every row needs to know."""

    def __init__(self, loaded: LoadedRecipe, members: dict[str, Member], base: Member | None, host: Member) -> None:
        self.loaded, self.members, self.base, self.host = loaded, members, base, host
        self.recipe = loaded.recipe
        self.dtype = DTYPES.get(self.recipe.output.dtype or "")
        self.new_tokens: tuple[NewToken, ...] = ()
        self.vision: list[str] = []  # the members whose encoders are merged

    def rows(self, language: Parameters) -> list[Row]:
        """One row per tensor of the host, in the host's order."""
        vision = self._vision_parameters()
        depth = stack_depths(place.canonical for place in self.host.places.values() if place)
        rows = []
        for key, place in self.host.places.items():
            if place is None:
                continue
            entry = self.host.checkpoint.tensors[key]
            position = layer_position(place.canonical, depth)
            if place.part == "language" and place.canonical in self._tables():
                rows.append(self._table_row(place.canonical, entry, language, position))
            elif place.part == "language":
                rows.append(self._merge_row("language", place.canonical, entry, language, position))
            elif vision is not None and entry.dtype in FLOAT_BYTES:
                rows.append(self._merge_row(place.part, place.canonical, entry, vision, position))
            else:
                note = "integers are not merged" if vision is not None else ""
                rows.append(self._copy_row(place.part, place.canonical, entry, note))
        for parameters in (language, vision):
            if parameters is not None:
                parameters.check_patterns()
        return rows

    def _tables(self) -> set[str]:
        return {self.host.text.embedding, self.host.text.head}

    def _vision_parameters(self) -> Parameters | None:
        branch = self.recipe.vision[0] if self.recipe.vision else None
        if branch is None or branch.merge is None:
            return None
        section = ("vision", 0, "merge")
        parameters = Parameters(self.loaded, section, branch.merge, list(self.members))
        _check_method(self.loaded, section, branch.merge, parameters, self.base)
        judge_eyes(self.host, [self.members[name] for name in parameters.members])
        self.vision = parameters.members
        return parameters

    def _row(self, action, part: str, canonical: str, entry: TensorEntry, **more) -> Row:
        dtype = self.dtype if self.dtype and entry.dtype in FLOAT_BYTES else entry.dtype
        return Row(entry.name, action, canonical, part, entry.shape, dtype, **more)

    def _copy_row(self, part: str, canonical: str, entry: TensorEntry, note: str = "") -> Row:
        return self._row("copy", part, canonical, entry, sources=(Source(self.host.name, entry),), note=note)

    def _merge_row(self, part: str, canonical: str, entry: TensorEntry, parameters: Parameters, position: float) -> Row:
        sources = [self._source(self.members[name], part, canonical) for name in parameters.members]
        base = self._base_source(parameters, part, canonical)
        for source in (*sources, base):
            if source and source.tensor.shape != entry.shape:
                raise CheckpointError(
                    f"tensor {source.tensor.name!r} of {source.member} has shape {list(source.tensor.shape)}, "
                    f"but {self.host.name} has {list(entry.shape)}",
                    where=source.tensor.file,
                    hint="only tensors of one shape can be merged",
                )
            if source and source.tensor.dtype not in FLOAT_BYTES:
                raise CheckpointError(
                    f"tensor {source.tensor.name!r} of {source.member} has dtype {source.tensor.dtype}, "
                    f"which cannot be merged",
                    where=source.tensor.file,
                    hint=f"fuse merges {', '.join(FLOAT_BYTES)}",
                )
        return self._row(
            "merge", part, canonical, entry, sources=tuple(sources), base=base, method=parameters.merge.method,
            parameters=parameters.at(canonical, position),
        )  # fmt: skip

    def _table_row(self, canonical: str, entry: TensorEntry, parameters: Parameters, position: float) -> Row:
        """An embedding table or head: rows are matched by token."""
        choice = self.recipe.language.embeddings
        path = ("language", "embeddings")
        if choice == self.host.name:
            return self._copy_row("language", canonical, entry, f"embeddings: {choice}")
        if choice not in {"merge", "union"}:
            known = self.members | ({"base": self.base} if self.base else {})
            if choice not in known:
                raise self.loaded.error(
                    path, f"{choice!r} is not a choice ({did_you_mean(choice, [*known, 'merge', 'union'])})"
                )
            given = self._source(known[choice], "language", canonical)
            row = self._row(
                "merge", "language", canonical, entry, sources=(given,), method="linear",
                parameters={"weights": [1.0], "normalize": True}, note=f"embeddings: {choice}",
            )  # fmt: skip
            return self._match(row, entry, [known[choice]])
        sources = [self._source(self.members[name], "language", canonical) for name in parameters.members]
        base = self._base_source(parameters, "language", canonical)
        row = self._row(
            "merge", "language", canonical, entry, sources=tuple(sources), base=base, method=parameters.merge.method,
            parameters=parameters.at(canonical, position),
        )  # fmt: skip
        who = [self.members[name] for name in parameters.members]
        return self._match(row, entry, [*who, self.base] if base and self.base else who)

    def _match(self, row: Row, entry: TensorEntry, who: list[Member]) -> Row:
        """The row as it is when all tables are alike; else with the runs of shared tokens."""
        tables = [s.tensor for s in (*row.sources, row.base) if s is not None]
        for member, table in zip(who, tables, strict=True):
            if table.shape[1:] != entry.shape[1:]:
                raise CheckpointError(
                    f"tensor {table.name!r} of {member.name} has rows of {list(table.shape[1:])}, "
                    f"but {self.host.name} has {list(entry.shape[1:])}", where=table.file,
                )  # fmt: skip
        if who == [self.host]:
            return row
        for member in (self.host, *who):
            if member.vocabulary is None:
                raise CheckpointError(
                    f"{member.name} has no tokenizer, so its embedding rows cannot be matched by token",
                    where=member.folder,
                    hint=f"add its tokenizer.json, or keep the host's rows with `embeddings: {self.host.name}`",
                )
        mine = self.host.vocabulary
        assert mine is not None
        vocabularies = [m.vocabulary for m in who if m.vocabulary is not None]
        same = all(v.digest == mine.digest for v in vocabularies) and all(t.shape == entry.shape for t in tables)
        if same and not self.new_tokens:
            return row
        runs = match_rows(mine, entry.shape[0], [(v, t.shape[0]) for v, t in zip(vocabularies, tables, strict=True)])
        if not runs:
            raise CheckpointError(f"no token is shared by {', '.join(m.name for m in who)}", where=self.host.folder)
        note = f"{shared_rows(runs):,} of {entry.shape[0]:,} rows matched by token, the others are {self.host.name}'s"
        note = f"{row.note}; {note}" if row.note else note
        row = replace(row, runs=runs, host=Source(self.host.name, entry), note=note)
        return self._extend(row) if self.new_tokens else row

    def _extend(self, row: Row) -> Row:
        """The row with the tokens that only guests have."""
        order = [source.member for source in row.sources]
        added = tuple(Added(t.row, order.index(t.member), t.source_row) for t in self.new_tokens)
        stored = self.host.language[self.host.text.embedding].shape[0]
        if row.shape[0] != stored:
            raise CheckpointError(
                f"the embedding has {stored} rows and {row.name!r} has {row.shape[0]}, so tokens cannot be added",
                where=self.host.folder, hint="embeddings: merge adds none",
            )  # fmt: skip
        shape = (rows_needed(stored, self.new_tokens), *row.shape[1:])
        return replace(row, added=added, shape=shape, note=f"{row.note}; {len(added)} rows of new tokens")

    def _source(self, member: Member, part: str, canonical: str) -> Source:
        tensors = member.parts[part]  # pyright: ignore[reportArgumentType]
        if canonical == member.text.head and part == "language" and canonical not in tensors:
            canonical = member.text.embedding  # a tied head
        if canonical not in tensors:
            raise CheckpointError(
                f"{member.name} has no tensor {canonical!r}, which {self.host.name} has", where=member.folder,
                hint="members must have the same tensors in the parts that are merged",
            )  # fmt: skip
        return Source(member.name, tensors[canonical])

    def _base_source(self, parameters: Parameters, part: str, canonical: str) -> Source | None:
        if METHODS[parameters.merge.method].base == "none" or self.base is None:
            return None
        return self._source(self.base, part, canonical)

    def drops(self, everyone: Sequence[Member], rows: Sequence[Row], language: Parameters) -> list[Drop]:
        """Every input tensor that no row reads, with the reason; an error where there is none."""
        read = {(s.member, s.tensor.name) for row in rows for s in row.reads}
        return [
            Drop(Source(m.name, entry), self._reason(m, key, language))
            for m in everyone
            for key, entry in m.checkpoint.tensors.items()
            if (m.name, key) not in read
        ]

    def _reason(self, member: Member, key: str, language: Parameters) -> str:
        place = member.places[key]
        if place is None:
            return "a buffer that is recomputed when the model is built"
        if place.part != "language" and member.name not in self.vision:
            kept = f"vision keeps {self.host.name}'s" if self.recipe.vision else "vision is empty"
            return "the base lends its language model only" if member is self.base else kept
        if place.part != "language":
            pass
        elif member is self.base:
            if METHODS[language.merge.method].base == "none":
                return f"{language.merge.method} uses no base"
        elif member.name not in language.members:
            return f"language gives {member.name} no weight"
        if place.canonical in self._tables() and self.recipe.language.embeddings not in {"merge", "union"}:
            return f"embeddings: {self.recipe.language.embeddings}"
        raise CheckpointError(
            f"tensor {key!r} of {member.name} has no counterpart in {self.host.name}",
            where=member.checkpoint.tensors[key].file,
            hint="members must have the same tensors in the parts that are merged",
        )
