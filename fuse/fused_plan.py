"""The branches of a fused plan: where each comes from, and the rows that copy or merge its tensors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fuse.anatomy import Member
from fuse.branches.class_token import has_class_token, without_class_token
from fuse.dtypes import stored
from fuse.errors import CheckpointError
from fuse.families.family import Part
from fuse.fusable import kind_of
from fuse.fused import FusedBranch, Lender
from fuse.fused_turned import branch_turned
from fuse.image_files import Sizes
from fuse.parameters import Parameters, stack_depths
from fuse.plan import Drop, Row, Source
from fuse.recipe_vision import Branch
from fuse.recipe_yaml import LoadedRecipe
from fuse.safetensors_header import FLOAT_BYTES
from fuse.tensor_rows import TensorRows, check_method
from fuse.verdicts import judge_eyes

LINEAR = r"multi_modal_projector\.(linear_\d\.)?weight$"
ANY = (336, 336)  # an image size: what a config cannot do it cannot do for any


def open_branches(loaded: LoadedRecipe, members: Mapping[str, Member], host: Member) -> tuple[FusedBranch, ...]:
    """Every branch of the recipe, in order.

    Raises CheckpointError where a tower or an encoder's file is missing or does not fit the host, RecipeError where
    `prune: cls` finds no class token.
    """
    found = []
    for i, branch in enumerate(loaded.recipe.vision or []):
        made = _of_member(loaded, i, branch, members[branch.from_]) if branch.from_ else (
            _of_files(loaded, i, branch, host)
        )  # fmt: skip
        found.append(replace(made, separator=branch.separator, positions=branch.positions, norm=branch.norm))
    return tuple(found)


def _of_member(loaded: LoadedRecipe, number: int, branch: Branch, member: Member) -> FusedBranch:
    kind, config = kind_of(member), dict(member.checkpoint.config)
    how = (branch.max_tokens, branch.prune)
    if kind == "native":
        _check_processor(member)
        _check_class(loaded, number, branch, member, has_class_token(kind, config))
        return FusedBranch(member.name, kind, member, config, *how)
    from fuse.branches.original_tokens import original_tokens
    from fuse.fused_towers import lenders_of, open_towers, preprocessing_folders, tower_configs

    towers = open_towers(member, loaded)
    config["towers"] = tower_configs(towers)
    try:
        original_tokens(kind, config, ANY)
    except CheckpointError as error:
        raise CheckpointError(error.problem, where=member.folder / "config.json", hint=error.hint) from None
    _check_projector(member)
    _check_class(loaded, number, branch, member, has_class_token(kind, config))
    return FusedBranch(
        member.name, kind, member, config, *how, lenders_of(member, towers), preprocessing_folders(towers)
    )


def _check_class(loaded: LoadedRecipe, number: int, branch: Branch, member: Member, has_class: bool) -> None:
    if branch.prune == "cls" and not has_class:
        who = f"{member.name} ({member.family.model_type})"
        raise loaded.error(("vision", number, "prune"), *without_class_token(who))


def _check_projector(member: Member) -> None:
    """The projector's last layer gives what the language model reads."""
    layers = {k: e for k, e in member.parts["projector"].items() if re.match(LINEAR, k)}
    last = max(layers, default=None)
    if last is not None and layers[last].shape[0] != member.basis.hidden_size:
        raise CheckpointError(
            f"tensor {layers[last].name!r} gives tokens of {layers[last].shape[0]} numbers, and the language model "
            f"reads {member.basis.hidden_size}", where=layers[last].file,
        )  # fmt: skip


def _check_processor(member: Member) -> None:
    if not any((member.folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise CheckpointError(
            f"{member.name} has no preprocessor_config.json, so its branch could not prepare images",
            where=member.folder, hint="copy it from the member's own repository",
        )  # fmt: skip
    Sizes(member.checkpoint.config, member.folder).check_edge()


def _of_files(loaded: LoadedRecipe, number: int, branch: Branch, host: Member) -> FusedBranch:
    from fuse.fused_encoders import open_encoder

    return open_encoder(loaded, number, branch, host)


@dataclass(frozen=True)
class BranchRows:
    """The rows of all branches, and whose eyes were mixed into which member's: member -> names."""

    rows: tuple[Row, ...]
    mixed: Mapping[str, Sequence[str]]


def eye_parameters(
    loaded: LoadedRecipe, number: int, members: Mapping[str, Member], base: Member | None, owner: Member
) -> Parameters | None:
    """The parameters of a branch's `merge`, after the check that the eyes of its members compute alike."""
    merge = (loaded.recipe.vision or [])[number].merge
    if merge is None:
        return None
    section = ("vision", number, "merge")
    parameters = Parameters(loaded, section, merge, list(members))
    check_method(loaded, section, merge, parameters, base)
    judge_eyes(owner, [members[name] for name in parameters.members])
    return parameters


def branch_rows(
    loaded: LoadedRecipe,
    branches: Sequence[FusedBranch],
    members: Mapping[str, Member],
    base: Member | None,
    dtypes: Mapping[str, str],
) -> BranchRows:
    """A row for every tensor of every branch, under `branches.<name>.`."""
    rows: list[Row] = []
    mixed: dict[str, Sequence[str]] = {}
    for number, branch in enumerate(branches):
        if branch.member is not None:
            parameters = eye_parameters(loaded, number, members, base, branch.member)
            maker = TensorRows(members, base, branch.member, dtypes, branch.prefix)
            depths = stack_depths(p.canonical for p in branch.member.places.values() if p)
            rows += maker.eyes(parameters, depths).values()
            mixed[branch.name] = parameters.members if parameters else ()
            if parameters:
                parameters.check_patterns()
        lent = [row for lender in branch.lenders for row in _lent_rows(branch, lender, dtypes)]
        rows += branch_turned(branch, lent) if branch.bridge else _averaged(lent, branch.shares)
    seen: dict[str, Row] = {}
    for row in rows:
        if (other := seen.setdefault(row.name, row)) is not row:
            raise CheckpointError(
                f"{other.sources[0].member} and {row.sources[0].member} both give {row.name!r}",
                where=row.sources[0].tensor.file,
            )
    return BranchRows(tuple(rows), mixed)


def _lent_rows(branch: FusedBranch, lender: Lender, dtypes: Mapping[str, str]) -> list[Row]:
    rows = []
    for key, canonical in lender.places.items():
        entry, part = lender.tensors[key], _part(canonical)
        kept = (stored(dtypes, part) if entry.dtype in FLOAT_BYTES else "") or entry.dtype
        source = Source(lender.name, entry)
        rows.append(Row(branch.prefix + canonical, "copy", canonical, part, entry.shape, kept, (source,)))
    return rows


def _averaged(rows: list[Row], shares: tuple[float, ...]) -> list[Row]:
    """The same rows, with one in place of those that every one of several projectors gives: their weighted mean."""
    if not shares:
        return rows
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name, []).append(row)
    made: list[Row] = []
    for same in found.values():
        if same[0].part == "projector":
            sources = tuple(source for row in same for source in row.sources)
            weights = {"weights": list(shares), "normalize": True}
            made.append(replace(same[0], action="merge", sources=sources, method="linear", parameters=weights))
        else:
            made += same
    return made


def _part(canonical: str) -> Part:
    return "projector" if canonical.startswith("projector.") else "encoder"


def lender_drops(lenders: Sequence[Lender]) -> list[Drop]:
    """Every tensor of towers and encoder files that the output leaves out, with the reason."""
    return [
        Drop(Source(lender.name, lender.tensors[key]), reason)
        for lender in lenders
        for key, reason in lender.dropped.items()
    ]


def branch_json(
    branch: FusedBranch, token_id: int, config: Mapping[str, Any], separator: Sequence[int] = ()
) -> dict[str, Any]:
    """The branch's entry in config.json. config: as it is stored, without code. separator: the ids of its tokens."""
    return {
        "name": branch.name, "kind": branch.kind, "token": branch.token, "token_id": token_id,
        "config": dict(config), "max_tokens": branch.max_tokens, "prune": branch.prune,
        **options_json(branch, separator),
    }  # fmt: skip


def options_json(branch: FusedBranch, separator: Sequence[int] = ()) -> dict[str, Any]:
    """What the branch asks for among the others; nothing of what it leaves as it is."""
    found: dict[str, Any] = {}
    if branch.separator is not None:
        found["separator"] = {"text": branch.separator, "ids": list(separator)}
    if branch.positions != "continued":
        found["positions"] = branch.positions
    if branch.norm != "none":
        found["norm"] = branch.norm
    return found
