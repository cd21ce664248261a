"""The log of a search, trials.jsonl: its first line says what search it is, and every trial follows as it is done."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import CheckpointError, MachineError, RecipeError
from fuse.search.space import Point

LOG = "trials.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Trial:
    """One recipe, and how it answered.

    number: from 0, the start recipe. point: a value for each axis; None for a start recipe that is no point of the
    space. answers, scores: in the order of the questions; scores () without labels. score: mean of the skills' scores.
    loss, entropy: means over the questions, in nats a token. refused: why the recipe cannot be, else "".
    part: "tuning", or "testing" for the answers to the questions that were held out.
    """

    number: int
    point: Point | None
    answers: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    score: float | None = None
    loss: float | None = None
    entropy: float | None = None
    seconds: float = 0.0
    refused: str = ""
    part: str = "tuning"


class Log:
    """The trials of a folder: those that it holds already, and a file to which each new one is added at once."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open or begin a search.

        identity: what makes two searches the same, by the name of the option. Raises RecipeError where the folder holds
        another search or something else, CheckpointError where the log is broken, MachineError where it cannot be made.
        """
        self.folder, self.file = folder, folder / LOG
        self.identity = json.loads(json.dumps(identity))
        check_folder(folder)
        self.trials = self._read() if self.file.exists() else []
        if not self.file.exists():
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise MachineError(f"cannot be made ({error.strerror})", where=folder) from None
            self._append({"fuse search": FORMAT, **self.identity})

    def add(self, trial: Trial) -> None:
        """Write a trial down, to the disk, before anything else happens."""
        told = {key: value for key, value in asdict(trial).items() if value not in (None, "", ())}
        self._append({"trial": told.pop("number"), **told})
        self.trials.append(trial)

    def reread(self) -> None:
        """Take the trials from the file again: an interruption may have come between writing one and knowing it."""
        self.trials = self._read()

    @property
    def tuning(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.part == "tuning"]

    @property
    def testing(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.part == "testing"]

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.file.open("ab") as file:
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MachineError(f"cannot be written ({error.strerror})", where=self.file) from None

    def _read(self) -> list[Trial]:
        """The trials of the file; a last line that was cut off while it was written is taken away."""
        data = strict_json.read_bytes(self.file)
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            self.file.write_bytes(b"")
            self._append({"fuse search": FORMAT, **self.identity})
            return []
        self._check_same(strict_json.parse_object(lines[0], where=f"{self.file}:1"))
        found = [_trial(strict_json.parse_object(line, where=f"{self.file}:{n}"), f"{self.file}:{n}")
                 for n, line in enumerate(lines[1:], start=2)]  # fmt: skip
        if len(whole) < len(data):
            os.truncate(self.file, len(whole))
        return found

    def _check_same(self, there: dict[str, Any]) -> None:
        if there.pop("fuse search", None) != FORMAT:
            raise CheckpointError("is not the log of a search that this version of fuse wrote", where=f"{self.file}:1")
        names = [name for name in {**self.identity, **there} if self.identity.get(name) != there.get(name)]
        if names:
            told = "; ".join(_difference(name, there.get(name), self.identity.get(name)) for name in names)
            raise RecipeError(f"holds another search: {told}", where=self.folder,
                              hint="name another folder, or search as then")  # fmt: skip


def check_folder(folder: Path) -> None:
    """RecipeError for a folder that cannot take a search: a file or link, no parent, or filled with something else."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise RecipeError("is not a folder", where=folder, hint="name a folder to make")
    if not folder.parent.is_dir():
        raise RecipeError(f"the folder {str(folder.parent)!r} does not exist", where=folder, hint="make it first")
    if folder.is_dir() and not (folder / LOG).exists() and any(folder.iterdir()):
        raise RecipeError("is not empty and holds no search", where=folder, hint="name another folder")


def _difference(name: str, there: Any, here: Any) -> str:
    short = all(isinstance(v, str | int | float | None) and len(str(v)) <= 40 for v in (there, here))
    digests = any(isinstance(v, str) and len(v) == 64 for v in (there, here))  # say nothing to people
    return f"{name} is {there} there and {here} here" if short and not digests else f"{name} is not the same"


def _trial(line: dict[str, Any], where: str) -> Trial:
    try:
        point = line.get("point")
        return Trial(
            number=line["trial"], score=line.get("score"), loss=line.get("loss"), entropy=line.get("entropy"),
            point=None if point is None else tuple(tuple(v) if isinstance(v, list) else v for v in point),
            answers=tuple(line.get("answers", ())), scores=tuple(line.get("scores", ())),
            seconds=line.get("seconds", 0.0), refused=line.get("refused", ""), part=line.get("part", "tuning"),
        )  # fmt: skip
    except (KeyError, TypeError):
        raise CheckpointError("is not a trial of a search", where=where, hint="name another folder") from None
