"""Folders over a data file, one after another: checked first, asked in batches, gone on with after an interruption."""

import gc
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from fuse import interruption
from fuse.alone import alone
from fuse.ask_folder import check_folder, check_weights
from fuse.errors import MachineError, RecipeError
from fuse.evaluate import log
from fuse.evaluate.questions import Question
from fuse.evaluate.replies import Reply
from fuse.progress import count_progress

RECIPES = frozenset({".yaml", ".yml"})
NEED_IMAGES = frozenset({"blip-2", "instructblip", "paligemma"})  # their classes answer nothing without an image


class Interrupted(Exception):
    """Ctrl-C: one sentence about what is kept and how to go on."""


@dataclass(frozen=True)
class Options:
    """How folders are asked. What changes replies is kept in the logs; batch, device and shown do not.

    norm: what choices are compared by, `token` or `sum` (see `fuse.evaluate.likelihood`). shown: progress on stderr.
    """

    max_tokens: int = 32
    loss: bool = False
    norm: str = "token"
    batch: int = 64
    device: str = "cpu"
    shown: bool = True

    def kept(self) -> dict[str, object]:
        return {"max_tokens": self.max_tokens, "loss": self.loss, "norm": self.norm}


@dataclass(frozen=True)
class Answered:
    """One folder's replies, by question key. label: its name, with parents where names repeat."""

    label: str
    folder: Path
    replies: dict[str, Reply]


def check_folders(folders: Sequence[Path], questions: Sequence[Question]) -> list[str]:
    """The folders' labels, once all that can be told without loading them has been.

    Raises RecipeError for a folder that is no folder, is named twice or cannot be asked these questions,
    CheckpointError for one that cannot be loaded.
    """
    named: dict[Path, Path] = {}
    blind = next((question for question in questions if not question.images), None)
    seeing = next((question for question in questions if question.images), None)
    for folder in folders:
        if folder.suffix in RECIPES and folder.is_file():
            raise RecipeError("is a recipe", where=folder, hint="merge it first")
        config, _ = check_folder(folder)
        check_weights(folder, config)
        try:
            check_folder(folder, images=seeing.images if seeing else ())
        except RecipeError:
            told = f"asks about an image, and {folder} has no image processor"
            raise RecipeError(told, where=seeing.where if seeing else folder) from None
        if (same := named.setdefault(folder.resolve(), folder)) is not folder:
            told = "is named twice" if str(same) == str(folder) else f"is the same folder as {same}"
            raise RecipeError(told, where=folder)
        if blind and config.get("model_type") in NEED_IMAGES:
            told = f"has no image, and {folder} ({config['model_type']}) answers only about images"
            raise RecipeError(told, where=blind.where)
    return labels([folder.resolve() for folder in folders])


def labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, each with as many parents as it takes to tell it from the others."""
    found = []
    for folder in folders:
        count = 1
        while count < len(folder.parts) and Counter(one.parts[-count:] for one in folders)[folder.parts[-count:]] > 1:
            count += 1
        found.append(str(Path(*folder.parts[-count:])))
    return found


def evaluate(
    folders: Sequence[Path], data: Path, questions: Sequence[Question], options: Options, *, out: Path | None = None,
    fresh: bool = False, say: Callable[[str], None] = lambda _: None,
) -> list[Answered]:  # fmt: skip
    """Every folder's replies to all questions, one model in memory at a time.

    out: a folder for logs (made where it is not there), from which the same call goes on. fresh: begin anew. say: gets
    a line for each folder when it is done. Raises what `check_folders`, `alone` and `log.begin` raise, before any model
    is loaded; Interrupted at Ctrl-C.
    """
    names = check_folders(folders, questions)
    if out is not None:
        check_out(out, folders)
    with alone(out) if out is not None else nullcontext():
        files = _begin_logs(folders, names, data, questions, options, out, fresh)
        found = []
        for folder, name, (file, replies) in zip(folders, names, files, strict=True):
            started, before = time.monotonic(), len(replies)
            try:
                _ask(folder, name, questions, options, file, replies)
            except KeyboardInterrupt:
                raise Interrupted(_told(name, len(replies), len(questions), file)) from None
            kept = f", {before:,} of them before" if before else ""
            say(f"{name}: {len(questions):,} questions{kept}, {time.monotonic() - started:.1f} s")
            found.append(Answered(name, folder, replies))
        return found


def _ask(
    folder: Path, name: str, questions: Sequence[Question], options: Options, file: Path | None,
    replies: dict[str, Reply],
) -> None:  # fmt: skip
    """Ask what is still open, and put it into `replies` and the log batch by batch."""
    left = [question for question in questions if question.key not in replies]
    if not left:
        return
    from fuse.ask import load
    from fuse.evaluate.answering import reply
    from fuse.evaluate.batches import prepare

    answerer = load(folder, device=options.device)
    try:
        interruption.check()
        with count_progress(len(questions), name, "questions", shown=options.shown, done=len(replies)) as advance:
            for batch in prepare(answerer, left, batch=options.batch):
                said = reply(answerer, batch, max_tokens=options.max_tokens, loss=options.loss, norm=options.norm)
                if file:
                    log.append(file, said)
                replies |= {one.key: one for one in said}
                advance(len(said))
                interruption.check()
    finally:
        del answerer
        _free()


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _begin_logs(
    folders: Sequence[Path], names: Sequence[str], data: Path, questions: Sequence[Question], options: Options,
    out: Path | None, fresh: bool,
) -> list[tuple[Path | None, dict[str, Reply]]]:  # fmt: skip
    """Each folder's log and the replies that are in it already."""
    if out is None:
        return [(None, {}) for _ in folders]
    digests = log.data_digests(data, questions)
    try:
        files = [out / f"{stem}.jsonl" for stem in stems(names)]
        firsts = [log.header(digests, folder, options.kept()) for folder in folders]
        if not fresh:
            for file, first in zip(files, firsts, strict=True):
                log.check(file, first)
        return [
            (file, log.begin(file, first, questions, fresh=fresh)) for file, first in zip(files, firsts, strict=True)
        ]
    except OSError as error:
        raise MachineError(f"cannot be written ({error.strerror})", where=error.filename or out) from None


def check_out(out: Path, folders: Sequence[Path]) -> None:
    """Refuse an --out that is no folder, has none to lie in, or is one of those that are asked."""
    if out.exists() and not out.is_dir():
        raise RecipeError("--out exists and is not a folder", where=out)
    if not out.resolve().parent.is_dir():
        raise RecipeError(f"the folder {str(out.resolve().parent)!r} does not exist", where=out, hint="make it first")
    if any(folder.resolve() == out.resolve() for folder in folders):
        raise RecipeError("--out is one of the folders that are asked", where=out, hint="name another")


def stems(names: Sequence[str]) -> list[str]:
    """A file name for each label, all different."""
    found: list[str] = []
    for name in names:
        stem = plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "folder"
        number = 1
        while stem in found:
            number += 1
            stem = f"{plain}-{number}"
        found.append(stem)
    return found


def _told(name: str, done: int, total: int, file: Path | None) -> str:
    if file is None:
        return "interrupted; nothing is kept (with --out DIR answers are, and the same command goes on from there)"
    return f"interrupted; {done:,} of {total:,} answers of {name} are in {file}; the same command goes on from there"
