"""What an evaluation leaves behind: results.json, table.md, and the table in model cards."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuse import __version__
from fuse.errors import MachineError, printable
from fuse.evaluate.card_table import check_card, write_table
from fuse.evaluate.metrics import scores
from fuse.evaluate.questions import Question
from fuse.evaluate.replies import Reply
from fuse.evaluate.run import Answered, Options
from fuse.evaluate.table import Result, Table, tabulate, to_json, to_markdown


def check_scorable(questions: Sequence[Question]) -> None:
    """Raise now what scoring would raise in the end, such as a library that is not installed."""
    scores(questions, {question.key: Reply(question.key, question.answers[0]) for question in questions})


def carded(folders: Sequence[Path], card: bool | None) -> list[Path]:
    """The folders whose card gets the table: all, none, or (None) those that fuse made.

    Raises what `check_card` raises for one whose card cannot be written.
    """
    chosen = [folder for folder in folders if card or (card is None and (folder / "fuse.json").is_file())]
    for folder in chosen:
        check_card(folder)
    return chosen


def tabled(questions: Sequence[Question], answered: Sequence[Answered], *, seed: int) -> Table:
    """The table of folders that have answered everything."""
    return tabulate(questions, [Result(one.label, scores(questions, one.replies)) for one in answered], seed=seed)


def document(
    table: Table, questions: Sequence[Question], answered: Sequence[Answered], data: Path, options: Options
) -> dict[str, Any]:
    """results.json: what was asked of what, the table, and each folder's mean entropy and loss by skill."""
    return {
        "fuse": __version__,
        "data": {"file": str(data), "sha256": _sha256(data), "questions": len(questions)},
        "options": options.kept(),
        "folders": [
            {"label": one.label, "folder": str(one.folder), "skills": _means(questions, one)} for one in answered
        ],
        "table": to_json(table),
    }


def _means(questions: Sequence[Question], one: Answered) -> dict[str, dict[str, float | None]]:
    """By skill: the means over its questions in nats, None where a reply has none."""
    found: dict[str, dict[str, float | None]] = {}
    for skill in dict.fromkeys(question.skill for question in questions):
        replies = [one.replies[question.key] for question in questions if question.skill == skill]
        found[skill] = {name: _mean([getattr(reply, name) for reply in replies]) for name in ("entropy", "loss")}
    return found


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def write_out(out: Path, table: Table, found: dict[str, Any]) -> None:
    """results.json and table.md, each whole or not at all."""
    _write(out / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    _write(out / "table.md", to_markdown(table))


def write_cards(folders: Sequence[Path], table: Table, data: Path, count: int) -> None:
    """The table, and what it was made of, in the card of every folder."""
    name = printable(data.name).replace("`", "'")
    told = f"{to_markdown(table)}\nData: `{name}`, {count:,} questions, sha256 `{_sha256(data)}`.\n"
    for folder in folders:
        write_table(folder, told)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise MachineError(f"cannot be written ({error.strerror})", where=file) from None
