"""Makes the plan: opens the members, asks whether they fit, and gives every tensor its row or its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fuse.anatomy import Member
from fuse.dropped import Uses, drops
from fuse.dtypes import PARTS, part_dtypes, stored
from fuse.folded import fold_rows, folding_of
from fuse.fusable import host_type
from fuse.fused import LANGUAGE, Fused, FusedBranch, FusedGraft
from fuse.fused_grafts import graft_rows, open_grafts
from fuse.fused_options import separators
from fuse.fused_plan import branch_rows, eye_parameters, lender_drops, open_branches
from fuse.host import host_of, member_of, open_named, why_fused
from fuse.layer_kinds import stacked_config
from fuse.layers import Stack, layers_verdict, output_tensors, stack_of, stacked_members
from fuse.new_tokens import NewToken, new_tokens
from fuse.parameters import Parameters, layer_position, stack_depths
from fuse.placeholders import fused_tokens, image_token_of, token_ids
from fuse.plan import Plan, Row, lenders_of, shard, unaccounted
from fuse.recipe import PartDtypes
from fuse.recipe_yaml import LoadedRecipe
from fuse.table_rows import table_row
from fuse.templates import fused_template, template_verdict
from fuse.tensor_rows import TensorRows, check_base, check_method, plain
from fuse.verdicts import Verdict, judge


@dataclass(frozen=True)
class _Output:
    """What decides the rows besides the members: tokens, template, and the fused side where there is one."""

    template: Member
    template_text: str
    verdict: Verdict
    new_tokens: tuple[NewToken, ...]
    fused: Fused | None


def make_plan(loaded: LoadedRecipe) -> Plan:
    """The plan of a recipe.

    Raises RecipeError where the recipe asks for what cannot be, CheckpointError where a member is broken or the
    members do not fit together.
    """
    recipe = loaded.recipe
    members = {name: open_named(loaded, ("members", name), name) for name in recipe.members}
    base = open_named(loaded, ("base",), "base") if recipe.base else None
    host = host_of(loaded, members, base)
    language = Parameters(loaded, ("language",), recipe.language, stacked_members(loaded, members))
    stack = stack_of(loaded, members, base, host, language)
    if stack is None:
        check_method(loaded, ("language",), recipe.language, language, base)
    else:
        check_base(loaded, ("language",), recipe.language, base)
    concerned = _concerned(loaded, members, base, host, language)
    verdicts = judge(host, concerned, recipe.language.accept, stacked=stack is not None)
    verdicts += [layers_verdict(loaded, stack)] if stack else []
    changes = stacked_config(loaded, stack, host, members) if stack else {}
    _check_towers(loaded, members)
    branches = open_branches(loaded, members, host) if why_fused(loaded) else ()
    grafts = open_grafts(loaded, host, branches) if recipe.grafts else ()
    folding = folding_of(loaded, host, grafts)
    if grafts:
        from fuse.grafts.fit import basis_verdict  # which needs numpy

        verdicts += basis_verdict(grafts, recipe.grafts, host)
    guests = [members[n] for n in language.members if members[n] is not host and recipe.language.embeddings == "union"]
    if branches or folding.left:
        output = _fused_output(loaded, members, host, branches, folding.left, guests)
    else:
        output = _native_output(loaded, members, host, concerned, guests)
    rows, mixed = _rows(loaded, members, base, host, language, output, stack)
    rows = fold_rows(rows, folding.folded)
    everyone = [*([base] if base else []), *members.values()]
    kept = [branch.title for branch in recipe.vision or []]
    dropped = drops(everyone, rows, Uses(recipe, host, base, language, kept, mixed, stack))
    folded = tuple(one for one, _ in folding.folded)
    lenders = lenders_of(output.fused, folded)
    dropped += lender_drops(lenders)
    _check_dtypes(loaded, rows)
    _check_idle(loaded, members, rows, {host.name, output.template.name})
    if lost := unaccounted(rows, dropped, everyone, lenders):
        raise RuntimeError(f"{len(lost)} tensors are unaccounted for, the first is {lost[0]}")
    return Plan(
        rows=tuple(rows), drops=tuple(dropped), verdicts=(*verdicts, output.verdict), members=tuple(everyone),
        host=host, shards=shard(rows, recipe.output.shard_size), recipe_text=loaded.text, template=output.template,
        template_text=output.template_text, recipe_file=loaded.file, dtypes=part_dtypes(recipe.output.dtype),
        new_tokens=output.new_tokens, fused=output.fused, folded=folded, changes=changes,
    )  # fmt: skip


def _concerned(
    loaded: LoadedRecipe, members: Mapping[str, Member], base: Member | None, host: Member, language: Parameters
) -> list[Member]:
    """Everyone but the host whose language model, rows or branch the output uses: all must be of the host's base."""
    recipe = loaded.recipe
    takes_part = [members[name] for name in language.members]
    rows_of = [members[recipe.language.embeddings]] if recipe.language.embeddings in members else []
    seeing = [members[b.from_] for b in recipe.vision or [] if b.from_] if why_fused(loaded) else []
    found = {m.name: m for m in (base, *takes_part, *rows_of, *seeing) if m is not None and m is not host}
    return list(found.values())


def _native_output(
    loaded: LoadedRecipe, members: dict[str, Member], host: Member, others: Sequence[Member], guests: Sequence[Member]
) -> _Output:
    template = member_of(loaded, ("prompt", "template"), loaded.recipe.prompt.template, members, host)
    verdict = template_verdict(loaded, host, template, others)
    union = loaded.recipe.language.embeddings == "union"
    return _Output(template, "", verdict, new_tokens(host, guests) if union else (), None)


def _fused_output(
    loaded: LoadedRecipe, members: dict[str, Member], host: Member, branches: tuple[FusedBranch, ...],
    grafts: tuple[FusedGraft, ...], guests: Sequence[Member],
) -> _Output:  # fmt: skip
    member_of(loaded, ("prompt", "template"), loaded.recipe.prompt.template, members, host)
    seeing = [branch.member for branch in branches if branch.member is not None]
    lent = [token for m in (*guests, *seeing) if m.vocabulary for token in m.vocabulary.added]
    template, text, verdict = fused_template(loaded, host, members, seeing, lent)
    image = image_token_of(template, text)
    own = [*(branch.token for branch in branches), *(token for graft in grafts for token in graft.placeholders)]
    empty = [*([image] if branches else []), *own]
    tokens = fused_tokens(host, guests, branches, empty)
    ids = token_ids(host, tokens, empty)
    silent = {ids[token] for token in own} | {token.row for token in tokens if not token.member}
    between = separators(loaded, host, tokens, members, empty)
    fused = Fused(branches, host_type(host), image, ids.get(image), ids, tuple(sorted(silent)), between, grafts)
    return _Output(template, text, verdict, tokens, fused)


def _rows(
    loaded: LoadedRecipe, members: dict[str, Member], base: Member | None, host: Member, language: Parameters,
    output: _Output, stack: Stack | None,
) -> tuple[list[Row], Mapping[str, Sequence[str]]]:  # fmt: skip
    """Every row of the output, and whose eyes were mixed into whose.

    A native output has the host's tensors in the host's order; a fused one the language model, then the branches.
    """
    dtypes = part_dtypes(loaded.recipe.output.dtype)
    maker = TensorRows(members, base, host, dtypes, LANGUAGE if output.fused else None)
    depths = stack_depths(place.canonical for place in host.places.values() if place)
    spoken = _language_rows(loaded, maker, language, stack, output.new_tokens)
    language.check_patterns()
    if output.fused:
        seen = branch_rows(loaded, output.fused.branches, members, base, dtypes)
        return [*spoken.values(), *seen.rows, *graft_rows(output.fused.grafts, stored(dtypes, "graft"))], seen.mixed
    eyes = eye_parameters(loaded, 0, members, base, host) if loaded.recipe.vision else None
    made = {**spoken, **maker.eyes(eyes, depths)}
    if eyes:
        eyes.check_patterns()
    ordered = dict.fromkeys([*(key for key in host.places if key in made), *made])  # more layers behind its own
    return [made[key] for key in ordered], {host.name: eyes.members if eyes else ()}


def _language_rows(
    loaded: LoadedRecipe, maker: TensorRows, language: Parameters, stack: Stack | None, tokens: Sequence[NewToken]
) -> dict[str, Row]:
    """A row for each tensor of the output's language model, by its name in the host's layout."""
    host, rows = maker.owner, dict[str, Row]()
    tensors = output_tensors(host, stack)
    depths = stack_depths(canonical for _, canonical, _ in tensors)
    for key, canonical, entry in tensors:
        position = layer_position(canonical, depths)
        names = stack.sources(canonical) if stack else dict.fromkeys(language.members, canonical)
        if canonical in {host.text.embedding, host.text.head}:
            row = table_row(loaded, maker, canonical, entry, language, position, tokens, list(names))
        else:
            row = maker.merge("language", canonical, entry, language, position, names)
        rows[key] = plain(row)
    return rows


def _check_towers(loaded: LoadedRecipe, members: Mapping[str, Member]) -> None:
    """`towers` mean something to a branch from an original-LLaVA member only."""
    seeing = [branch.from_ for branch in loaded.recipe.vision or []] if why_fused(loaded) else []
    for name, given in loaded.recipe.members.items():
        if given.towers is None:
            continue
        if members[name].family.native:
            told = f"{name} holds its own encoder" if members[name].sees else f"{name} cannot see"
            raise loaded.error(("members", name, "towers"), told, "leave `towers` out")
        if name not in seeing:
            raise loaded.error(("members", name, "towers"), f"{name} is no branch of a fused folder, so none is read")


def _check_dtypes(loaded: LoadedRecipe, rows: Sequence[Row]) -> None:
    """A dtype for a part that the output does not have means nothing."""
    given, there = loaded.recipe.output.dtype, {row.part for row in rows}
    for name in given.model_fields_set if isinstance(given, PartDtypes) else ():
        if getattr(given, name) and not there.intersection(PARTS[name]):
            raise loaded.error(("output", "dtype", name), "the output has no such tensors", "leave it out")


def _check_idle(loaded: LoadedRecipe, members: Mapping[str, Member], rows: Sequence[Row], useful: set[str]) -> None:
    for name in members:
        if name not in useful and not any(s.member == name for row in rows for s in row.reads):
            raise loaded.error(("members", name), "takes part in nothing", hint="give it a weight or leave it out")
