"""What becomes of a row, and the names of many in short."""

import re
from collections.abc import Iterable
from typing import Any

from fuse.plan import Plan, Row, Source, folded_names, without

NAMES_SHOWN = 2
LAYER = re.compile(r"\.(\d+)(?=\.)")
LEFT = re.compile(r"layer (\d+) of (.*) is not among the layers")


def names(rows: Iterable[Row]) -> str:
    """The names of tensors in short: one layer's number where all are of it, else layers folded to {}."""
    found = [row.name for row in rows]
    folded = list(dict.fromkeys(LAYER.sub(".{}", name) for name in found))
    layers = {match[1] for name in found for match in LAYER.finditer(name)}
    if len(layers) == 1 and len(found) > 1:
        folded = [name.replace("{}", layers.copy().pop()) for name in folded]
    if len(folded) <= NAMES_SHOWN:
        return ", ".join(folded)
    inside = [name for name in found if LAYER.search(name)]
    if len(layers) == 1 and len(found) > len(inside) >= len(found) - 2:  # a layer, and what stands beside it
        outside = [name for name in found if name not in inside]
        return ", ".join([_common([name.split(".") for name in inside]) + "*", *outside])
    common = _common([name.split(".") for name in folded])
    return f"{common}*" if common else f"{folded[0]}, {folded[1]} and {len(folded) - 2} more"


def _common(names: list[list[str]]) -> str:
    """The leading pieces that all names share, each with its dot."""
    pieces = []
    for column in zip(*names, strict=False):  # up to the shortest name
        if len(set(column)) > 1:
            break
        pieces.append(f"{column[0]}.")
    return "".join(pieces)


def treatment(row: Row, every: bool) -> str:
    """`copy from a`, `ties of a + b over base [weights 0.5/0.5]`. every: also parameters that are the defaults."""
    if row.action == "make":
        return row.note
    if row.action == "fold":
        return _fold(row, every)
    if row.action == "copy":
        return f"copy from {row.sources[0].member}" + (f" ({row.note})" if row.note else "")
    text = f"{row.method} of {_sources(row.sources)}" + (" over base" if row.base else "")
    numbers = ", ".join(f"{k} {_number(v)}" for k, v in row.parameters.items() if every or not _is_default(row, k, v))
    return text + (f" [{numbers}]" if numbers else "") + (f" ({row.note})" if row.note else "")


def _fold(row: Row, every: bool) -> str:
    """`fold adapter, memory into linear of a + b`, in the order of folding."""
    if row.part == "graft":
        return f"fold {row.sources[0].member} into fewer tensors"
    before = without(row)
    return f"fold {', '.join(folded_names(row))} into {treatment(before, every) if before else 'a new tensor'}"


def _is_default(row: Row, name: str, value: Any) -> bool:
    from fuse.methods.table import METHODS

    default = METHODS[row.method].params[name].default
    return value == default or value == [default] * len(row.sources)


def _sources(sources: Iterable[Source]) -> str:
    return " + ".join(s.member + (f" ({s.update.kind})" if s.update else "") for s in sources)


def _number(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(_number(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _times(count: int) -> str:
    return f" x{count}" if count > 1 else ""


def drop_lines(plan: Plan, every: bool) -> list[str]:
    """A line per member, piece of names and reason, for what is left out; a line per tensor where `every` is set."""
    groups: dict[tuple[str, str, str], int] = {}
    layers: dict[tuple[str, str, str], list[int]] = {}
    for drop in plan.drops:
        name = drop.source.tensor.name
        short = name if every else LAYER.sub(".{}", name).split(".{}")[0]
        match = None if every else LEFT.fullmatch(drop.reason)
        reason = match[2] if match else drop.reason
        key = (drop.source.member, short if every else short.split(".")[0] + ".*", reason)
        groups[key] = groups.get(key, 0) + 1
        if match:
            layers.setdefault(key, []).append(int(match[1]))
    told = {key: _left(layers[key], key[2]) if key in layers else key[2] for key in groups}
    return [f"{key[0]}: {key[1]}{_times(count)}  {told[key]}" for key, count in groups.items()]


def _left(numbers: Iterable[int], member: str) -> str:
    """`layers 0-3, 7 of a are not among the layers`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    what, verb = ("layer", "is") if text.isdecimal() else ("layers", "are")
    return f"{what} {text} of {member} {verb} not among the layers"
