"""A plan in a terminal: a tree of the members and a table of the parts, as wide as the terminal is."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from fuse.errors import printable
from fuse.plan import Plan
from fuse.plan_view.parts import parts_of
from fuse.plan_view.text import COLUMNS, every_row, member_branches, notes, part_rows, sections, verdict_sections
from fuse.visual_tokens import Cost

NARROW = 72  # columns below which what becomes of a part stands under its numbers
MARKS = {"=": "green", "!": "yellow"}


def show_plan(plan: Plan, *, every: bool = False, cost: Cost | None = None, console: Console | None = None) -> None:
    """Print what `plan_text` tells, with colors, on stdout or the console."""
    console = console or Console(highlight=False)
    parts: list[RenderableType] = [_members(plan)]
    for title, lines in verdict_sections(plan):
        parts += _section(title, lines)
    parts.append(Text(f"tensors ({len(plan.rows)})", style="bold"))
    table = _every(plan) if every else _stacked(plan) if console.width < NARROW else _table(plan)
    parts.append(Padding(table, (0, 0, 0, 2), expand=False))
    for title, lines in sections(plan, every=every, cost=cost):
        parts += _section(title, lines)
    parts += [Text(printable(f"note: {note}"), style="yellow") for note in notes(plan)]
    console.print(Group(*parts))


def _members(plan: Plan) -> Tree:
    tree = Tree(Text("members", style="bold"), guide_style="dim")
    for title, uses in member_branches(plan):
        name, colon, rest = title.partition(":")
        branch = tree.add(Text.assemble((printable(name), "cyan"), printable(colon + rest)))
        for use in uses:
            branch.add(Text(printable(use), style="dim" if use.startswith("left out") else ""))
    return tree


def _section(title: str, lines: Sequence[str]) -> list[RenderableType]:
    shown: list[RenderableType] = [Text(printable(title), style="bold")]
    for line in lines:
        if not line.startswith(" "):  # the title of another section
            shown.append(Text(printable(line), style="bold"))
            continue
        text = Text(printable(line.strip()))
        if line.lstrip()[:1] in MARKS:
            text.stylize(MARKS[line.lstrip()[0]], 0, 1)
        shown.append(Padding(text, (0, 0, 0, 2), expand=False))
    return shown


def _every(plan: Plan) -> Text:
    return Text(printable("\n".join(every_row(plan.rows))))


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(COLUMNS[0], no_wrap=True)
    for title in COLUMNS[1:4]:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(COLUMNS[4], overflow="fold")
    for name, *numbers, what in part_rows(parts_of(plan.rows)):
        table.add_row(Text(name, style="cyan"), *map(Text, numbers), Text(printable(what)))
    return table


def _stacked(plan: Plan) -> Group:
    """The table where it has no room: what becomes of tensors under their numbers."""
    lines: list[RenderableType] = []
    for name, tensors, parameters, size, what in part_rows(parts_of(plan.rows)):
        numbers = f"{tensors} tensors, {parameters} parameters, {size}"
        lines.append(Text.assemble((f"{name}  " if name else "  ", "cyan"), numbers))
        if what:
            lines.append(Padding(Text(printable(what)), (0, 0, 0, 4), expand=False))
    return Group(*lines)
