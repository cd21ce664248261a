"""The card of a folder that was written in another form: the same but for how it is used."""

from pathlib import Path

from fuse.card_use import BEGIN, END, use_text
from fuse.evaluate.card_table import BEGIN as SCORES
from fuse.front_matter import CARD


def write_card(source: Path, folder: Path, told: str = "") -> None:
    """The card of `source` in `folder`, which is the same model in another form and has its config and tokenizer.

    How it is loaded, asked and served is told anew, and its limits; all else stays, what people wrote and scores too. A
    card that lost the two comments around that part gets one behind what it says. Nothing is written where `source`
    has no card. told: how it came to that form, in Markdown.
    """
    if not (source / CARD).is_file():
        return
    text = (source / CARD).read_bytes().decode("utf-8", "replace")
    (folder / CARD).write_bytes(in_form(text, use_text(folder, told)).encode())


def in_form(text: str, told: str) -> str:
    """The text of a card with its part on use replaced by what is told, which ends with a line break."""
    newline = "\r\n" if "\r\n" in text else "\n"
    told = told.replace("\n", newline)
    if text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END):
        return text[: text.index(BEGIN)] + told + text[text.index(END) + len(END) :].removeprefix(newline)
    at = text.index(SCORES) if SCORES in text else len(text)
    return f"{text[:at].rstrip()}{newline * 2}{told}{newline if text[at:] else ''}{text[at:]}"
