"""All checks of one folder, in order; the first that fails ends them."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse.errors import CheckpointError, RecipeError
from fuse.no_folder import no_folder
from fuse.verify.gguf import NO_TRANSFORMERS, check_gguf, check_gguf_bytes, ggufs, is_gguf
from fuse.verify.headers import Weights, check_described, check_headers, told_of
from fuse.verify.listing import check_files
from fuse.verify.outcome import Outcome, skipped
from fuse.verify.parts import (
    LANGUAGE,
    NO_ADAPTER_MODEL,
    NO_MODEL,
    check_adapter,
    check_parts,
    is_adapter,
    is_parts,
)
from fuse.verify.record import Record, read_record
from fuse.verify.sight import check_sight

if TYPE_CHECKING:
    from fuse.ask import Answerer

NOT_LOADED = "not asked for (--no-load)"
Bar = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def _no_bar(_total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


@dataclass
class Looked:
    """The folder, how to look, and what earlier checks found out for later ones.

    sources: the folder of the recipe, where its sources are to be compared too. bar: shows so many bytes being read.
    why: it is not run.
    """

    folder: Path
    load: bool
    sources: Path | None
    threads: int
    bar: Bar
    record: Record | None = None
    weights: Weights = field(default_factory=lambda: Weights({}))
    config: dict[str, Any] = field(default_factory=dict)
    answerer: "Answerer | None" = None
    why: str = NOT_LOADED


def _files(looked: Looked) -> Outcome:
    looked.record = read_record(looked.folder)
    return check_files(looked.folder, looked.record)


def _headers(looked: Looked) -> Outcome:
    outcome, looked.weights = check_headers(looked.folder, looked.record)
    return outcome


def _config(looked: Looked) -> Outcome:
    outcome, looked.config = check_described(looked.folder)
    if looked.config.get("model_type") == "fuse" and looked.record is None:
        raise CheckpointError("is missing, and every fused folder has one", where=looked.folder / "fuse.json")
    check_sight(looked.folder, looked.config)
    return outcome


def _sha256(looked: Looked) -> Outcome:
    from fuse.verify.hashes import check_bytes

    with looked.bar(looked.weights.nbytes) as progress:
        return check_bytes(looked.weights, looked.record, looked.threads, progress)


def _finite(looked: Looked) -> Outcome:
    from fuse.verify.finite import check_finite

    with looked.bar(looked.weights.nbytes) as progress:
        return check_finite(looked.weights, looked.threads, progress)


def _sources(looked: Looked) -> Outcome:
    from fuse.verify.sources import check_sources

    assert looked.sources is not None
    return check_sources(looked.record, looked.sources, looked.threads, looked.bar)


def _loads(looked: Looked) -> Outcome:
    if not looked.load:
        return skipped(NOT_LOADED)
    from fuse.verify.loads import check_loads

    outcome, looked.answerer = check_loads(looked.folder, looked.config)
    looked.why = outcome.told
    return outcome


def _answers(looked: Looked) -> Outcome:
    if looked.answerer is None:
        return skipped(looked.why)
    from fuse.verify.loads import check_answers

    return check_answers(looked.folder, looked.answerer)


def _parts(looked: Looked) -> Outcome:
    outcome, looked.weights = check_parts(looked.folder)
    return outcome


def _adapter(looked: Looked) -> Outcome:
    outcome, looked.weights = check_adapter(looked.folder)
    return outcome


def _gguf_files(looked: Looked) -> Outcome:
    looked.record = read_record(looked.folder)
    return check_files(looked.folder, looked.record, weights={file.name for file in ggufs(looked.folder)})


Check = Callable[[Looked], Outcome]
MODEL: dict[str, Check] = {
    "files": _files, "headers": _headers, "config": _config, "sha256": _sha256, "finite": _finite, "loads": _loads,
    "answers": _answers,
}  # fmt: skip
PARTS: dict[str, Check] = {
    "files": _files, "parts": _parts, "headers": lambda looked: told_of(looked.weights), "finite": _finite,
    "loads": lambda looked: skipped(NO_MODEL),
}  # fmt: skip
ADAPTER: dict[str, Check] = {
    "files": _files, "adapter": _adapter, "headers": lambda looked: told_of(looked.weights), "sha256": _sha256,
    "finite": _finite, "loads": lambda looked: skipped(NO_ADAPTER_MODEL),
}  # fmt: skip
GGUF: dict[str, Check] = {
    "files": _gguf_files, "gguf": lambda looked: check_gguf(looked.folder, looked.record),
    "sha256": lambda looked: check_gguf_bytes(looked.folder, looked.record, looked.threads, looked.bar),
    "loads": lambda looked: skipped(NO_TRANSFORMERS),
}  # fmt: skip


def verify(
    folder: Path, *, load: bool = True, sources: Path | None = None, threads: int | None = None, bar: Bar = _no_bar,
) -> Iterator[tuple[str, Outcome]]:  # fmt: skip
    """The checks as they are done, by name; one that fails comes as such before what it raised.

    load: open the model with transformers and run it once. sources: the folder of the recipe, to compare what the
    output was made of too. threads: how many files or tensors are read at once; as many as there are cores where left
    out. bar: opened with the bytes to read where a check reads many, for a function that is called, from several
    threads, with the bytes read since its last call.
    Raises RecipeError for what is no folder to verify, CheckpointError for the first check that fails, MachineError
    where the machine cannot.
    """
    _check_folder(folder)
    if sources is not None and not sources.is_dir():
        what = "is no folder" if sources.exists() else "there is no such folder"
        raise RecipeError(what, where=sources, hint="--sources takes the folder that the recipe lies in")
    looked = Looked(folder, load, sources, threads or len(os.sched_getaffinity(0)), bar)
    kind = _kind(folder)
    for name, check in (kind | ({"sources": _sources} if sources is not None else {})).items():
        try:
            outcome = check(looked)
        except CheckpointError as error:
            yield name, Outcome(str(error), "failed")
            raise
        yield name, outcome
    if kind is not MODEL and (folder / LANGUAGE / "config.json").is_file():
        for name, outcome in verify(folder / LANGUAGE, load=load, threads=threads, bar=bar):
            yield f"{LANGUAGE}/{name}", outcome


def _kind(folder: Path) -> dict[str, Check]:
    if is_adapter(folder):
        return ADAPTER
    if is_parts(folder):
        return PARTS
    return GGUF if is_gguf(folder) else MODEL


def _check_folder(folder: Path) -> None:
    partial = folder.parent / f".{folder.name}.partial"
    if not folder.exists() and partial.is_dir():
        raise RecipeError("there is no such folder, but an unfinished merge", where=folder,
                          hint="the same fuse merge goes on from there")  # fmt: skip
    if not folder.is_dir():
        raise no_folder(folder)
    if any(path.name.endswith(".partial") for path in (folder.absolute(), folder.absolute().parent)):
        raise RecipeError("is an unfinished merge", where=folder, hint="the same fuse merge goes on from there")
    if _kind(folder) is MODEL and not (folder / "config.json").exists():
        told = "no config.json, graft.json, projector.json, adapter_config.json or GGUF"
        raise RecipeError(f"holds nothing to verify: {told}", where=folder)
