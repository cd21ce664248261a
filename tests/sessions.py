"""Sessions in documents: a `console` block is what a terminal shows, and its commands run on the members of recipes/zoo.

    python -m tests.sessions docs/fuse.md       # puts what the commands say now in place of what the page says

A line that begins with `$ ` is a command, `fuse ...` or `python FILE` of a file that the page shows; what follows, up
to the next, is all that it prints. A line of `...` stands for any lines. Figures that differ from run to run (seconds,
rates, free room) are not compared.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cli import fuse_here

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
CHANGING = (  # what no two runs have in common, and what stands for it
    (r"\b\d[\d.,]* (?:s|ms|min)\b", "# s"),
    (r"\b\d[\d.,]* [kMG]?B/s", "# B/s"),
    (r"sha256 [0-9a-f]{64}", "sha256 #"),
    (r"on \d+ cores?, if", "on # cores, if"),
    (r"free disk here \d[\d.,]* [kMGT]?B", "free disk here #"),
)


@dataclass(frozen=True)
class Step:
    """A command of a page and what the page says that it prints."""

    command: str
    said: str


def steps(block: str) -> list[Step]:
    """The commands of a console block, in order."""
    head, *rest = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert not head.strip(), f"a session begins with a command, not with {head!r}"
    return [Step(*(part.strip("\n") for part in one.partition("\n")[::2])) for one in rest]


def sessions(text: str) -> list[Step]:
    """All commands of a page, in order."""
    return [step for language, block in BLOCK.findall(text) if language == "console" for step in steps(block)]


def furnish(text: str, folder: Path) -> None:
    """Where a page's sessions run: the recipes and pictures of the repository, and the files that the page shows."""
    for name in ("recipes", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for language, block in BLOCK.findall(text):
        title = re.match(r"# (\w+\.(?:yaml|py))\n", block)
        if language in ("yaml", "yml", "python") and title:
            (folder / title[1]).write_text(block)
        elif language == "jsonl":
            (folder / "questions.jsonl").write_text(block)


def ran(command: str) -> str:
    """What a command prints on a terminal of 100 columns, without spaces at the ends of lines."""
    verb, *args = shlex.split(command)
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        printed = {"fuse": _fuse, "python": _python}[verb](*args)
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())


def _fuse(*args: str) -> str:
    done = fuse_here(*args)
    return done.out + done.err


def _python(file: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(file)
    return printed.getvalue()


def plain(text: str) -> str:
    """A text without what changes from run to run."""
    for pattern, stands in CHANGING:
        text = re.sub(pattern, stands, text)
    return text


def agrees(said: str, printed: str) -> bool:
    """Whether the page's words are what was printed, where `...` is any lines."""
    parts = [re.escape(plain(part)) for part in re.split(r"^\.\.\.$", said, flags=re.MULTILINE)]
    return re.fullmatch(".*".join(parts), plain(printed), re.DOTALL) is not None


def renewed(text: str) -> str:
    """The page with what its commands print now, where that is not what it says; runs them in the working folder."""

    def block(found: re.Match[str]) -> str:
        if found[1] != "console":
            return found[0]
        shown = []
        for step in steps(found[2]):
            printed = ran(step.command)
            said = step.said if agrees(step.said, printed) else printed
            shown.append(f"$ {step.command}\n{said}".rstrip("\n"))
        return "```console\n" + "\n".join(shown) + "\n```"

    return BLOCK.sub(block, text)


def main() -> None:
    for name in sys.argv[1:]:
        page = Path(name).resolve()
        with tempfile.TemporaryDirectory() as folder:
            furnish(page.read_text(), Path(folder))
            os.chdir(folder)
            text = renewed(page.read_text())
            os.chdir(ROOT)
        page.write_text(text)


if __name__ == "__main__":
    main()
