"""The one error family: what is wrong, where, and what would work.

The command line prints a `FuseError` as one sentence without a traceback and exits with its code.
"""

import unicodedata
from collections.abc import Sequence

UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's control, direction, surrogate, line and paragraph marks


class FuseError(Exception):
    """Something the user can mend; exit code 2 unless a subclass says otherwise.

    problem: one sentence with the offending value. where: file, file:line:column or tensor. hint: what would work.
    more: further sentences, a line each. Names are a stranger's: nothing in a sentence begins another line.
    """

    exit_code = 2

    def __init__(self, problem: str, *, where: object = "", hint: str = "", more: Sequence[str] = ()) -> None:
        self.problem, self.where, self.hint, self.more = problem, str(where), hint, tuple(more)
        text = f"{self.where}: {problem}" if self.where else problem
        super().__init__("\n".join(one_line(line) for line in (f"{text} ({hint})" if hint else text, *more)))


class RecipeError(FuseError):
    """The recipe, or the command line, is wrong (exit code 2)."""


class CheckpointError(FuseError):
    """A checkpoint folder is broken, hostile or of a kind that cannot be merged (exit code 3)."""

    exit_code = 3


class MachineError(FuseError):
    """Disk, memory, permission, network or device (exit code 4)."""

    exit_code = 4


def printable(text: str) -> str:
    """The text with control and direction characters escaped, so that a name cannot drive a terminal."""
    return "".join(
        c.encode("unicode_escape").decode() if c != "\n" and unicodedata.category(c) in UNSEEN else c for c in text
    )


def in_a_line(error: BaseException) -> str:
    """What another library's exception says, in one line of at most 200 letters; its type where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def one_line(text: str) -> str:
    """As `printable`, with line breaks escaped too."""
    return printable(text.replace("\n", "\\n"))


def short(value: object) -> str:
    """The value as Python writes it, cut to 60 letters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
