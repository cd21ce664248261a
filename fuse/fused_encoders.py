"""Encoder branches of a plan: an encoder and a projector from files, as a recipe names them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fuse.anatomy import Member
from fuse.branches.class_token import without_class_token
from fuse.branches.encoder_files import LIBRARIES, EncoderFiles, Row, read_encoder, same_projector
from fuse.branches.projector_folder import Given
from fuse.errors import CheckpointError, RecipeError
from fuse.fused import FusedBranch, Lender
from fuse.methods.table import METHODS
from fuse.recipe_vision import Branch
from fuse.recipe_yaml import LoadedRecipe

BELONGS = "a projector belongs to the language model that it was trained for; a `bridge` brings it over"


def open_encoder(loaded: LoadedRecipe, number: int, branch: Branch, host: Member) -> FusedBranch:
    """The branch that entry `number` of `vision` describes.

    Raises RecipeError where the entry is wrong, CheckpointError where its files do not fit each other or the host.
    """
    keys = ("name", *LIBRARIES, "weights", "projector", "layer")
    entry = {key: value for key in keys if (value := getattr(branch, key)) is not None}
    first, *others = branch.projectors
    shares = tuple(share.weight for share in branch.projectors) if others else ()
    if shares and (wrong := METHODS["linear"].problem({"weights": shares, "normalize": True}, len(shares))):
        raise loaded.error(("vision", number, "projector"), wrong)
    try:
        files = read_encoder(entry | {"projector": first.path}, relative_to=loaded.folder)
        more = [same_projector(share.path, loaded.folder, files.projector) for share in others]
    except RecipeError as error:
        if error.where == f"vision.{branch.name}.layer":
            raise loaded.error(("vision", number, "layer"), error.problem, error.hint) from None
        given = f"{error.where}: " if error.where and error.where != f"vision.{branch.name}" else ""
        raise loaded.error(("vision", number), f"{given}{error.problem}", error.hint) from None
    if branch.weights and any(_real(loaded, branch.weights) == _real(loaded, p.path) for p in branch.projectors):
        raise loaded.error(("vision", number, "projector"), "is the file of the weights", "keep them in two files")
    if branch.bridge is None and files.hidden_size not in (
        0,
        host.basis.hidden_size,
    ):  # 0: it gives no tokens, and only shows features to grafts
        raise CheckpointError(
            f"the projector of {branch.name} gives tokens of {files.hidden_size} numbers, and {host.name} reads "
            f"{host.basis.hidden_size}", where=files.projector.where,
            hint=BELONGS,
        )  # fmt: skip
    for projector in (files.projector, *more) if branch.bridge is None else ():
        _check_basis(str(branch.name), projector, host)
    if branch.prune == "cls" and not files.has_class:
        raise loaded.error(("vision", number, "prune"), *without_class_token(str(files.config["architecture"])))
    folders = (files.checkpoint.folder,) if files.checkpoint else ()
    lenders = _lenders(str(branch.name), branch, files, more)
    made = FusedBranch(
        str(branch.name), "encoder", None, files.config, branch.max_tokens, branch.prune, lenders, folders, files.grid,
        shares=shares,
    )  # fmt: skip
    if branch.bridge is None:
        return made
    from fuse.fused_bridges import cross_projector  # which needs numpy

    bridge, config, turned = cross_projector(loaded, number, branch, files.projector, files.config, host)
    return replace(made, config=config, bridge=bridge, turned=turned)


def _check_basis(name: str, projector: Given, host: Member) -> None:
    """A projector folder that records the embedding of its language model is for hosts of that basis."""
    record = projector.host
    if not record.get("embedding") or not projector.hidden_size:
        return
    from fuse.grafts.basis import why_another_basis  # which needs numpy

    if why := why_another_basis({key: record.get(key) for key in ("model", "embedding")}, host):
        raise CheckpointError(f"the projector of {name}: {why}", where=projector.where, hint=BELONGS)


def _lenders(name: str, branch: Branch, files: EncoderFiles, more: Sequence[Given]) -> tuple[Lender, ...]:
    """The encoder's file or folder, and each projector's file: two files may use one key twice."""
    weights = branch.encoder or branch.weights
    parts: dict[str, list[Row]] = {"encoder": [], "projector": []}
    projector = {entry.file for entry, *_ in files.projector.placed}
    for row in files.rows:
        parts["projector" if row.entry.file in projector else "encoder"].append(row)
    first, *others = branch.projectors
    origins = {"encoder": str(weights), "projector": first.path}
    for i, (given, share) in enumerate(zip(more, others, strict=True), 2):
        parts[f"projector.{i}"], origins[f"projector.{i}"] = [Row(*placed) for placed in given.placed], share.path
    return tuple(
        Lender(
            f"{name}.{part}", origins[part], {row.entry.name: row.entry for row in rows},
            {row.entry.name: row.name for row in rows if row.name is not None},
            {row.entry.name: row.reason for row in rows if row.name is None},
            files.checkpoint if part == "encoder" else None,
        )
        for part, rows in parts.items() if rows
    )  # fmt: skip


def _real(loaded: LoadedRecipe, location: str) -> Path:
    return (loaded.folder / location).resolve()
