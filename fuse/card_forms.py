"""The card of a folder that was written in another form: what people wrote stays, what is no longer so is told anew."""

import re
from collections.abc import Mapping
from pathlib import Path

from fuse.card_tables import BRANCHES, THIS, sha256_rows
from fuse.card_use import BEGIN, END, use_text
from fuse.evaluate.card_table import BEGIN as SCORES
from fuse.evaluate.card_table import END as SCORES_END
from fuse.front_matter import CARD

LINE = r"\r?\n"
TABLE = rf"(?:\|.*{LINE})+"
# as a merge wrote them; whoever changed a word of one keeps it
FUSED = re.compile(
    rf"^## (?:Branches{LINE}{LINE}{re.escape(BRANCHES)}|Grafts){LINE}{LINE}{TABLE}(?:{LINE})?", re.MULTILINE
)
WEIGHTS = re.compile(
    rf"(?:^\| {THIS} \| [^|\r\n]* \| (?:`[0-9a-f]{{64}}`|not hashed|in `fuse\.json`) \|(?:{LINE}|\Z))+", re.MULTILINE
)


def write_card(source: Path, folder: Path, told: str = "") -> None:
    """The card of `source` in `folder`, which is the same model in another form and has its config and tokenizer.

    How it is loaded, asked and served is told anew, and its limits; all else stays, what people wrote and scores too. A
    card that lost the two comments around that part gets one behind what it says. Nothing is written where `source`
    has no card. told: how it came to that form, in Markdown.
    """
    if text := read_card(source):
        (folder / CARD).write_bytes(in_form(text, use_text(folder, told)).encode())


def read_card(folder: Path) -> str:
    """The text of a folder's card, line ends as they are; "" without one."""
    return (folder / CARD).read_bytes().decode("utf-8", "replace") if (folder / CARD).is_file() else ""


def in_form(text: str, told: str) -> str:
    """The text of a card with its part on use replaced by what is told, which ends with a line break."""
    newline = "\r\n" if "\r\n" in text else "\n"
    told = told.replace("\n", newline)
    if text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END):
        return text[: text.index(BEGIN)] + told + text[text.index(END) + len(END) :].removeprefix(newline)
    at = text.index(SCORES) if SCORES in text else len(text)
    return f"{text[:at].rstrip()}{newline * 2}{told}{newline if text[at:] else ''}{text[at:]}"


def with_weights(text: str, sha256: Mapping[str, str]) -> str:
    """The text of a card with the rows on the folder's own weights replaced. sha256: by file, "" where not hashed."""
    newline = "\r\n" if "\r\n" in text else "\n"
    rows = "".join(f"| {' | '.join(row)} |{newline}" for row in sha256_rows(THIS, sha256))
    return WEIGHTS.sub(lambda _: rows, text, count=1)


def without_fused(text: str) -> str:
    """The text of a card without the title and the tables of a fused folder."""
    text = re.sub(r"^# A fused model(?=\r?$)", "# A merged model", text, count=1, flags=re.MULTILINE)
    return FUSED.sub("", text)


def without_scores(text: str) -> str:
    """The text of a card without the table of an evaluation."""
    if not text.count(SCORES) == text.count(SCORES_END) == 1 or text.index(SCORES) > text.index(SCORES_END):
        return text
    return text[: text.index(SCORES)] + text[text.index(SCORES_END) + len(SCORES_END) :].lstrip("\r\n")
