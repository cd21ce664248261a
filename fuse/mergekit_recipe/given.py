"""A mergekit recipe as it was read, with the place of every key; what its keys are and which are refused."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fuse.errors import RecipeError, short
from fuse.recipe_mistakes import Path_, dotted, where_of
from fuse.suggest import did_you_mean

TOP: Final = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template",
)  # fmt: skip
# keys of mergekit that mean nothing here, and why
REFUSED: Final[Mapping[str, str]] = {
    "modules": "fuse knows the parts of a checkpoint by itself",
    "name": "it names one of several documents, and fuse merges one at a time",
    "out_path": "the output is named on the command line",
    "residual_weight": "mergekit itself does not read it",
    "override_architecture": "fuse takes a checkpoint as its config describes it",
    "tokens": "fuse takes the row of a token from whoever has it, without settings by token",
    "pad_to_multiple_of": "fuse keeps the rows that the embedding has",
}
HINTS: Final[Mapping[str, str]] = {
    "modules": "write a recipe with members and language; `vision` says what becomes of encoders",
    "name": "put each document into a file of its own, and merge them in turn",
}


@dataclass(frozen=True)
class Given:
    """What the file says, as plain values. positions: line and column of every key and entry."""

    file: Path
    text: str
    data: Mapping[str, Any]
    positions: dict[Path_, tuple[int, int]]

    def error(self, path: Path_, problem: str, hint: str = "") -> RecipeError:
        """An error at a place of the file, such as ("models", 0, "parameters", "weight")."""
        return RecipeError(f"{dotted(path)}: {problem}", where=where_of(self.file, self.positions, path), hint=hint)

    def table(self, path: Path_, value: Any, keys: Iterable[str], needed: Iterable[str] = ()) -> dict[str, Any]:
        """The value as a table of these keys; RecipeError for another kind, for other keys and for missing ones."""
        known = list(keys)
        if not isinstance(value, dict):
            raise self.error(path, f"should be a table, not {_told(value)}")
        for key in value:
            if key in REFUSED and key not in known:
                raise self.error((*path, key), f"means nothing here: {REFUSED[key]}", HINTS.get(key, "leave it out"))
            if key not in known:
                raise self.error((*path, key), f"unknown key ({did_you_mean(key, known)})", MISTAKEN)
        for key in needed:
            if value.get(key) is None:
                raise self.error((*path, key), "is missing")
        return value

    def entries(self, path: Path_, value: Any) -> list[Any]:
        """The value as a list that is not empty."""
        if not isinstance(value, list):
            raise self.error(path, f"should be a list, not {_told(value)}")
        if not value:
            raise self.error(path, "is empty")
        return value

    def word(self, path: Path_, value: Any) -> str:
        """The value as text."""
        if not isinstance(value, str) or not value:
            raise self.error(path, f"should be a word, not {_told(value)}")
        return value


MISTAKEN: Final = "mergekit reads over keys that it does not know"


def _told(value: Any) -> str:
    return "nothing" if value is None else short(value)
