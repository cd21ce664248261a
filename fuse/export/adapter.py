"""What a merge did to a language model as an adapter of its base: the first singular vectors of every difference.

Two passes, one pair of tensors at a time: the first finds which tensors differ at all, so that the file's header is
known; the second decomposes the differences and writes. The factors are float32, alpha is the rank.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import fuse
from fuse.anatomy import Member
from fuse.digests import RECORD, Digest, small_files
from fuse.errors import RecipeError
from fuse.export.adapter_base import Base, Merged, as_recorded, base_of, check_alike, eyes_of, merged_of
from fuse.export.adapter_names import (
    PREFIX,
    TRANSPOSED,
    also,
    in_memory,
    is_matrix,
    module_of,
    peft_config,
    stored_name,
    targets,
)
from fuse.export.adapter_report import Held, Report, report_json, share
from fuse.export.cards import adapter_card
from fuse.export.folders import Opened, check_apart, check_target, opened
from fuse.export.intact import intact
from fuse.grafts.lora_peft import CONFIG, WEIGHTS
from fuse.partial import new_folder
from fuse.plan import Row, Source
from fuse.safetensors_header import TensorEntry
from fuse.sizes import counted
from fuse.small_files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from fuse.engine.read import Reader

Rest = Literal["whole", "leave"]


def export_adapter(
    folder: Path, out: Path, *, rank: int, base: str | None = None, rest: Rest | None = None, force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Write `out`, a LoRA folder as PEFT reads it, and tell how much of the differences it holds.

    rank: of every matrix, or its smaller side. base: its folder or hub id; as fuse.json records it where left out.
    rest: what becomes of tensors that no adapter changes by a matrix (norms, biases, embeddings) where they differ:
    stored whole, or left out. progress: called with the bytes read since its last call, twice the language model's.
    Raises RecipeError where there is no base, nothing differs, such tensors differ and `rest` is not given;
    CheckpointError where folder or base are not as fuse.json records them, have other tensors or shapes, or a number is
    not finite.
    """
    source = opened(folder)
    check_target(folder, out, force=force)
    merged, found = merged_of(source), base_of(source, base)
    for place in found.places:
        check_apart(out, place, "the base")
    against = found.member
    check_alike(merged, against, folder)
    from fuse.engine.read import Reader

    with Reader() as reader:
        with intact(source), as_recorded(found):
            deltas = _deltas(merged.language, against.language, against, reader, progress)
            eyes = _eye_deltas(merged, against, reader)
        plan = _planned(folder, merged, against, deltas, rest)
        report = Report(rank, found.named, beside=merged.beside)
        report.left |= {in_memory(against.family, name): deltas[name] for name in plan.left} | eyes
        report.whole |= {in_memory(against.family, name): deltas.get(name, 0.0) for name in plan.whole}
        with new_folder(out, "export", force=force) as made:
            digest = _write(made / WEIGHTS, merged, against, plan, rank, deltas, reader, report, progress)
            _finish(source, made, merged, found, plan, report, digest)
    return report


@dataclass(frozen=True)
class _Plan:
    """Canonical names: of matrices, of tensors that are stored whole, of those that are left out."""

    matrices: tuple[str, ...]
    whole: tuple[str, ...]
    left: tuple[str, ...]


def _deltas(
    language: Mapping[str, TensorEntry], theirs: Mapping[str, TensorEntry], base: Member, reader: "Reader",
    progress: Callable[[int], None],
) -> dict[str, float]:  # fmt: skip
    """The norm of the difference of every tensor that differs."""
    found: dict[str, float] = {}
    for name, entry in language.items():
        if size := _norm(_difference(entry, theirs[name], base, reader)):
            found[name] = size
        progress(entry.nbytes)
    return found


def _eye_deltas(merged: Merged, base: Member, reader: "Reader") -> dict[str, float]:
    """The same of encoder and projector, where both have them; of a tensor that the base lacks its own norm."""
    theirs, found = eyes_of(base), dict[str, float]()
    for name, entry in merged.eyes.items() if theirs else ():
        other = theirs.get(name)
        alike = other is not None and other.shape == entry.shape
        size = _norm(_difference(entry, other if alike else None, base, reader))
        found |= {name: size} if size else {}
    return found


def _difference(entry: TensorEntry, other: TensorEntry | None, base: Member, reader: "Reader") -> "Tensor":
    """In float32, in float64 where one of them is that; the tensor itself where there is no other."""
    import torch

    from fuse.engine.finite import checked

    mine = Source("the folder", entry)
    wide = torch.float64 if "F64" in (entry.dtype, other.dtype if other else "") else torch.float32
    delta = checked(reader.tensor(mine), mine).to(wide, copy=True)
    if other is None:
        return delta
    theirs = Source.of(base, other)
    return delta.sub_(checked(reader.tensor(theirs), theirs).to(wide))


def _norm(delta: "Tensor") -> float:
    import torch

    return torch.linalg.vector_norm(delta, dtype=torch.float64).item()


def _planned(
    folder: Path, merged: Merged, base: Member, deltas: Mapping[str, float], rest: Rest | None
) -> _Plan:  # fmt: skip
    """Which tensors become matrices. Raises RecipeError where nothing differs, or others do and `rest` is not given."""
    if not deltas:
        raise RecipeError("the language model is that of its base, bit by bit", where=folder)
    head = merged.text.head
    able = [n for n in deltas if is_matrix(n, merged.language[n].shape, head, tied=base.is_tied)]
    others = [name for name in deltas if name not in able]
    if not able:
        told = f"nothing that an adapter changes differs from the base's, and {others[0]!r} does"
        raise RecipeError(told, where=folder)
    if others and rest is None:
        size = math.hypot(*(deltas[name] for name in others))
        part = share(size, math.hypot(*deltas.values()))
        told = f"{counted(len(others), 'tensor')} that no adapter changes by a matrix differ from the base's, the first"
        raise RecipeError(
            f"{told} is {others[0]!r}; they are {part:.2%} of the difference's norm", where=folder,
            hint="--rest whole stores them as they are, --rest leave leaves them out",
        )  # fmt: skip
    if rest != "whole":
        return _Plan(tuple(able), (), tuple(others))
    matrices = {module_of(n) for n, e in merged.language.items() if is_matrix(n, e.shape, head, tied=base.is_tied)}
    modules = {module_of(name) for name in others} - matrices
    whole = tuple(name for name in merged.language if module_of(name) in modules)
    return _Plan(tuple(able), (*whole, *(name for name in others if module_of(name) in matrices)), ())


def _write(
    file: Path, merged: Merged, base: Member, plan: _Plan, rank: int, deltas: Mapping[str, float], reader: "Reader",
    report: Report, progress: Callable[[int], None],
) -> Digest:  # fmt: skip
    """adapter_model.safetensors, one matrix after another; what each misses goes into the report."""
    import torch

    from fuse.engine.write import ShardFile, stored_order
    from fuse.export.low_rank import low_rank

    rows: dict[str, tuple[Row, ...]] = {}
    across = base.text.name in TRANSPOSED
    for name in plan.matrices:
        module = PREFIX + in_memory(base.family, module_of(name))
        shape = merged.language[name].shape[::-1] if across else merged.language[name].shape
        own = min(rank, *shape)
        rows[name] = (
            Row(f"{module}.lora_A.weight", "make", name, "language", (own, shape[1]), "F32", ()),
            Row(f"{module}.lora_B.weight", "make", name, "language", (shape[0], own), "F32", ()),
        )
    changed = {in_memory(base.family, module_of(name)) for name in plan.matrices}
    for name in plan.whole:
        entry, read = merged.language[name], (Source("the folder", merged.language[name]),)
        keys = [stored_name(in_memory(base.family, one), changed) for one in (name, *also(base, name))]
        rows[name] = tuple(Row(PREFIX + key, "copy", name, "language", entry.shape, entry.dtype, read) for key in keys)
    flat = [row for own in rows.values() for row in own]
    written = ShardFile(file, [flat[i] for i in stored_order(flat)])
    try:
        for name in plan.matrices:
            delta = _difference(merged.language[name], base.language[name], base, reader)
            delta = delta.T if across else delta
            up, down = low_rank(delta, rank)
            missed = _norm(torch.addmm(delta, up.to(delta), down.to(delta), alpha=-1))
            report.held[in_memory(base.family, name)] = Held(len(down), deltas[name], missed / deltas[name])
            for row, factor in zip(rows[name], (down, up), strict=True):
                written.write(row, 0, factor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            progress(merged.language[name].nbytes)
        for name in plan.whole:
            for row in rows[name]:
                written.copy(row, *reader.stored(row.sources[0]), Event())
            progress(merged.language[name].nbytes)
        return written.finish(Event(), hashed=True, sync=True)
    finally:
        written.close()


def _finish(
    source: Opened, made: Path, merged: Merged, found: Base, plan: _Plan, report: Report, digest: Digest
) -> None:  # fmt: skip
    """Config, record and card."""
    base = found.member
    ranks = {module_of(name): one.rank for name, one in report.held.items()}
    there = {in_memory(base.family, module_of(name)) for name in merged.language}
    head = base.text.head
    matrices = {module_of(n) for n, e in merged.language.items() if is_matrix(n, e.shape, head, tied=base.is_tied)}
    apart = [name for name in plan.whole if module_of(name) not in matrices]
    whole = {in_memory(base.family, module_of(one)) for name in apart for one in (name, *also(base, name))}
    config = peft_config(base, report.base, report.rank, ranks, targets(list(ranks), there, sees=base.sees), whole)
    biases = any(module_of(name) in matrices for name in plan.whole)
    write_json(made / CONFIG, {**config, "bias": "all" if biases else "none"})
    kept = ("plan", "recipe", "members", "licences")
    told: dict[str, Any] = {"fuse": fuse.__version__, **{k: v for k, v in source.record.told.items() if k in kept}}
    told["exported"] = report_json(report) | {"from": dict(source.record.sha256)}
    told["sha256"], told["marks"] = {WEIGHTS: digest.sha256}, {WEIGHTS: digest.marks}
    told["files"] = small_files(made)
    write_json(made / RECORD, told)
    (made / "README.md").write_text(adapter_card(source, report_json(report), found), encoding="utf-8")
