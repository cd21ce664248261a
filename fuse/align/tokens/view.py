"""The document of `fuse inspect tokens` for a terminal: a column per folder, a table of rows, the sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.errors import printable

Document = Mapping[str, Any]
ALWAYS = frozenset({"before a text", "chat template", "default system"})  # rows that are told where nobody has it
LONGEST = 60  # letters of a system prompt, or of the steps of a part


def to_rich(document: Document) -> Any:
    """The folders side by side, the host first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE, padding=(0, 1), show_edge=False)
    shown.add_column("", no_wrap=True)
    for head in heads(document):
        shown.add_column(Text(printable(head)), overflow="fold")
    for head, cells in shown_rows(document):
        shown.add_row(Text(head), *(Text(printable(cell)) for cell in cells))
    return shown


def heads(document: Document) -> list[str]:
    """The names of the folders, with what they are to the recipe."""
    marks = {document["base"]: " (base)", document["host"]: " (host)"}
    return [one["name"] + marks.get(one["name"], "") for one in document["folders"]]


def shown_rows(document: Document) -> list[tuple[str, list[str]]]:
    """What is told of every folder, by its name, without what none of them has."""
    return [(head, cells) for head, cells in _rows(document) if head in ALWAYS or not set(cells) <= {"-", "none"}]


def _rows(document: Document) -> list[tuple[str, list[str]]]:
    folders: Sequence[Document] = document["folders"]
    rows = [
        ("class", [one["model_type"] for one in folders]),
        ("tokenizer", [one["tokenizer"] for one in folders]),
        ("tokens", [f"{one['tokens']:,}" for one in folders]),
        ("added tokens", [f"{one['added_tokens']:,}" for one in folders]),
        ("rows", [f"{one['embedding']['rows']:,} x {one['embedding']['width']:,}" for one in folders]),
        ("no token's rows", [f"{one['embedding']['padding']:,}" for one in folders]),
        ("rows of the head", [_head(one["embedding"]["head_rows"]) for one in folders]),
    ]
    for role in dict.fromkeys(role for one in folders for role in one["special"] if role != "image"):
        rows.append((role, [_token(one["special"].get(role)) for one in folders]))
    rows.append(("answers end at", [", ".join(map(str, one["ends"])) or "-" for one in folders]))
    rows.append(("before a text", [_listed(one["before"]) for one in folders]))
    rows.append(("behind a text", [_listed(one["behind"]) for one in folders]))
    rows.append(("image", [_token(one["image"]) for one in folders]))
    width, height = folders[0]["image"]["size"]
    rows.append((f"tokens of {width}x{height}", [_count(one["image"]) for one in folders]))
    for part in dict.fromkeys(part for one in folders for part in one["parts"]):
        rows.append(
            (part.replace("_", "-"), [_short(one["parts"].get(part, {"word": "?"})["word"]) for one in folders])
        )
    rows.append(("chat template", [_template(one["template"]) for one in folders]))
    rows.append(("default system", [_short(one["template"]["default_system"]) for one in folders]))
    if "text" in document:
        texts = [document["text"]["folders"][one["name"]] for one in folders]
        rows.append(("tokens of the text", [f"{one['tokens']:,}" for one in texts]))
        rows.append(("the same as the host's", [f"{one['same']:.1%}" for one in texts]))
    return rows


def _head(rows: int | None) -> str:
    return "tied" if rows is None else f"{rows:,}"


def _token(one: Document | None) -> str:
    if one is None or (one["token"] is None and one["id"] is None):
        return "-"
    return f"{'?' if one['token'] is None else one['token']} ({'no id' if one['id'] is None else one['id']})"


def _listed(tokens: Sequence[str] | None) -> str:
    return "?" if tokens is None else " ".join(tokens) or "-"


def _count(image: Document) -> str:
    if image["token"] is None:
        return "-"
    return f"? ({image['why']})" if image["tokens"] is None else f"{image['tokens']:,}"


def _template(template: Document) -> str:
    if template["origin"] == "none":
        return "none"
    whose = "of fuse" if template["origin"] == "fuse" else template["sha256"][:8]
    refused = ", ".join(template["refused"])
    return f"{whose}, refuses {refused}" if refused else whose


def _short(text: str) -> str:
    line = " ".join(text.split())
    return (f"{line[:LONGEST]}..." if len(line) > LONGEST else line) or "-"


def lines(document: Document) -> list[str]:
    """What the choices of `embeddings` give, and every verdict: `=` where the folders agree, `!` where not."""
    found, rows = [], document["embeddings"]
    if rows["choices"]:
        over = f" over {rows['base']}" if rows["base"] else ""
        found.append(f"embeddings of {', '.join(rows['members'])}{over}")
        found += [f"  {one['choice']}: {choice_text(one)}" for one in rows["choices"]]
    found.append("verdicts")
    found += [f"  {'=' if one['agrees'] else '!'} {one['topic']}: {one['text']}" for one in document["verdicts"]]
    return [printable(line) for line in found]


def choice_text(one: Document) -> str:
    """What a choice of `embeddings` makes of the rows, in words."""
    if one["refused"]:
        return f"refused: {one['refused']}"
    told = [f"{one['merged']:,} {'mixed' if one['choice'] in {'merge', 'union'} else 'taken'}"]
    told += [f"{one['kept']:,} kept"] if one["kept"] else []
    told += [f"{one['added']:,} added"] if one["added"] else []
    return f"{one['rows']:,} rows: {', '.join(told)}"
