"""The table of docs/evidence.md: what each part of a composition gives, on the members of the zoo.

    python tools/evidence.py build/evidence --zoo recipes/zoo --each 100

Writes a recipe for every row, merges it, asks all the same questions, and compares each row with the best parent.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from zoo_questions import SKILLS, TEXT_SKILLS, write_questions

from fuse.evaluate.questions import Question
from fuse.evaluate.replies import Reply
from fuse.evaluate.table import Table as Compared

ZOO = Path(__file__).parent.parent / "recipes" / "zoo"
SCENE = ("count", "presence")
TRIPLE = ("hue", "form", "sign")


@dataclass(frozen=True)
class Row:
    """A line of the table: a parent's folder, a recipe, or parents that answer together."""

    label: str
    why: str
    parent: str = ""
    recipe: str = ""
    together: tuple[str, ...] = ()
    blind: bool = False  # sees no picture, and is asked about none


def recipe(vision: Sequence[str], weights: Mapping[str, float | str], language: str = "method: task_arithmetic") -> str:
    """A recipe over members of the zoo. vision: entries of the list as YAML, the host first. weights: or YAML."""
    hosts = [entry.split("from:")[-1].strip(" {}").split(",")[0] for entry in vision]
    names = dict.fromkeys([*hosts, *weights])
    lines = ["base: ZOO/base", "members:", *(f"  {name}: ZOO/{name}" for name in names), "language:", f"  {language}"]
    given = {name: value if isinstance(value, str) else f"{value:g}" for name, value in weights.items()}
    lines += [f"  weights: {{{', '.join(f'{name}: {value}' for name, value in given.items())}}}"]
    lines += ["vision:", *(f"  - {entry}" for entry in vision)]
    lines += ["output: {model: fuse, host: " + hosts[0] + "}"]
    return "\n".join(lines) + "\n"


def two() -> list[Row]:
    """Two members: sight of color, and sight of shape."""
    half, whole, both = {"hue": 0.5, "form": 0.5}, {"hue": 1.0, "form": 1.0}, ["hue", "form"]
    ties, dare = "method: ties\n  density: 0.5", "method: dare_linear\n  density: 0.5"
    strange = {"hue": 0.5, "stranger": 0.5}
    few = ["{from: hue, max_tokens: 8}", "{from: form, max_tokens: 8}"]
    alike = [few[0], "{from: form, max_tokens: 8, prune: similarity}"]
    large = ["{from: hue, max_tokens: 8, prune: norm}", "{from: form, max_tokens: 8, prune: norm}"]
    early, late = dict.fromkeys(both, "[1, 0]"), dict.fromkeys(both, "[0, 1]")
    return [
        Row("hue", "parent", parent="hue"),
        Row("form", "parent", parent="form"),
        Row("hue, merged LLM", "merging only", recipe=recipe(["hue"], half)),
        Row("form, merged LLM", "merging only", recipe=recipe(["form"], half)),
        Row("hue+form, LLM of hue", "concatenation only", recipe=recipe(both, {"hue": 1.0, "form": 0.0})),
        Row("hue+form, LLM of form", "concatenation only", recipe=recipe(both, {"hue": 0.0, "form": 1.0})),
        Row("hue+form, base LLM", "concatenation, no deltas", recipe=recipe(both, {"hue": 0.0, "form": 0.0})),
        Row("VisionFuse", "hue, form; 0.5 each", recipe=recipe(both, half)),
        Row("VisionFuse, form first", "order of branches", recipe=recipe(both[::-1], half)),
        Row("VisionFuse, 1.0 each", "deltas summed", recipe=recipe(both, whole)),
        Row("+ separator", 'a "." between blocks', recipe=recipe(["hue", _after("form", "separator", '"."')], half)),
        Row(
            "+ shared positions", "on the first's", recipe=recipe(["hue", _after("form", "positions", "shared")], half)
        ),
        Row("+ norm match", "the first's norm", recipe=recipe(["hue", _after("form", "norm", "match")], half)),
        Row("TIES 0.5", "trimmed, signs elected", recipe=recipe(both, whole, ties)),
        Row("DARE 0.5", "half of the deltas dropped", recipe=recipe(both, half, dare)),
        Row("equal budget", "8 + 8 tokens, as form has", recipe=recipe(few, half)),
        Row("equal budget, similarity", "form's that hue does not say", recipe=recipe(alike, half)),
        Row("equal budget, norm", "the largest ones", recipe=recipe(large, half)),
        Row("deltas early", "1 at the first layer, 0 at the last", recipe=recipe(both, early)),
        Row("deltas late", "0 at the first layer, 1 at the last", recipe=recipe(both, late)),
        Row("ensemble of outputs", "answers averaged, no fusion", together=("hue", "form")),
        Row("hue+stranger", "control: another family", recipe=recipe(["hue", "stranger"], strange)),
    ]


def three() -> list[Row]:
    """Three members: color, shape, and letters."""
    third, whole, all3 = dict.fromkeys(TRIPLE, 1 / 3), dict.fromkeys(TRIPLE, 1.0), list(TRIPLE)
    one = dict.fromkeys(TRIPLE, 0.0) | {"hue": 1.0}
    apart = ["hue", *(_after(name, "separator", '"."') for name in TRIPLE[1:])]
    return [
        *(Row(name, "parent", parent=name) for name in TRIPLE),
        Row("VisionFuse of hue, form", "two members", recipe=recipe(["hue", "form"], {"hue": 0.5, "form": 0.5})),
        Row("concatenation, LLM of hue", "no merging", recipe=recipe(all3, one)),
        Row("VisionFuse of three", "a third each", recipe=recipe(all3, third)),
        Row("VisionFuse of three, 1.0 each", "deltas summed", recipe=recipe(all3, whole)),
        Row("VisionFuse of three + separators", 'a "." between blocks', recipe=recipe(apart, third)),
    ]


def expert() -> list[Row]:
    """A member that sees, and a text expert on the same base."""
    return [
        Row("hue", "parent", parent="hue"),
        Row("expert", "parent, text only", parent="expert", blind=True),
        *(
            Row(f"hue + {share:g} expert", "merged LLM", recipe=recipe(["hue"], {"hue": 1.0, "expert": share}))
            for share in (0.25, 0.5, 0.75, 1.0)
        ),
        Row("0.5 hue + 1 expert", "merged LLM", recipe=recipe(["hue"], {"hue": 0.5, "expert": 1.0})),
    ]


def _after(member: str, option: str, value: str) -> str:
    """An entry of `vision` with one option."""
    return f"{{from: {member}, {option}: {value}}}"


TABLES: dict[str, tuple[Callable[[], list[Row]], tuple[str, ...]]] = {
    "two": (two, (*SCENE, "color", "shape", "color+shape")),
    "three": (three, SKILLS),
    "expert": (expert, (*SCENE, "color", *TEXT_SKILLS)),
}


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--zoo", type=click.Path(file_okay=False, exists=True, path_type=Path), default=ZOO, show_default=True)
@click.option("--table", "tables", type=click.Choice(list(TABLES)), multiple=True, default=list(TABLES))
@click.option("--split", type=click.Choice(["tune", "test"]), default="test", show_default=True)
@click.option("--each", type=click.IntRange(2, 999), default=100, show_default=True, help="Questions of every skill.")
@click.option("--only", help="Only rows whose label holds this, and the parents.")
def main(out: Path, zoo: Path, tables: Sequence[str], split: str, each: int, only: str | None) -> None:
    """Fill the tables and write them under OUT as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    for name in tables:
        rows, skills = TABLES[name]
        chosen = [row for row in rows() if not only or row.parent or only in row.label]
        found = fill(chosen, skills, zoo.resolve(), out / name, split, each)
        (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def fill(rows: Sequence[Row], skills: Sequence[str], zoo: Path, out: Path, split: str, each: int) -> dict[str, object]:
    """Answers of every row to the same questions, scored and compared with the best parent, printed and returned."""
    from rich.console import Console
    from rich.table import Table

    from fuse.evaluate.questions import read_questions
    from fuse.evaluate.table import Result, tabulate, to_json

    data = write_questions(out / "questions", split, each, skills)
    asked = read_questions(data)
    began = time.monotonic()
    found = {row.label: _scores(row, asked, data, zoo, out) for row in rows}
    seeing = [label for label in found if not np.isnan(found[label]).any()]
    best = max((row.label for row in rows if row.parent and row.label in seeing), key=lambda name: found[name].mean())
    order = [best, *(label for label in seeing if label != best)]
    table = tabulate(asked, [Result(label, found[label]) for label in order])
    joint = np.array(["+" in one.skill for one in asked])
    parts = {"all": table}
    if joint.any():
        some = [one for one, take in zip(asked, joint, strict=True) if take]
        parts["both"] = tabulate(some, [Result(label, found[label][joint]) for label in order])
    heads = ["", "", *skills, "all", *(f"{part} - {best}" for part in parts)]
    cells = [_cells(row, found[row.label], asked, skills, order, list(parts.values())) for row in rows]
    title = f"{len(asked)} questions ({split}), right out of 100"
    shown = Table(*heads, title=title)
    for line in cells:
        shown.add_row(*line)
    Console(width=150).print(shown)
    click.echo(f"{time.monotonic() - began:.0f} s")
    ruled = ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *cells)]
    out.with_suffix(".md").write_text(f"{title}\n\n" + "\n".join(ruled) + "\n", encoding="utf-8")
    tables = {part: to_json(one) for part, one in parts.items()}
    return {"split": split, "tables": tables, "rows": {row.label: row.recipe or row.parent for row in rows}}


def _cells(
    row: Row, scores: np.ndarray, asked: Sequence[Question], skills: Sequence[str], order: Sequence[str],
    parts: Sequence[Compared],
) -> list[str]:  # fmt: skip
    """A line of the table: shares of right answers, and differences to the best parent with 95% intervals."""
    per = [scores[[one.skill == skill for one in asked]].mean() for skill in skills]
    cells = ["" if np.isnan(value) else f"{100 * value:.0f}" for value in (*per, scores.mean())]
    at = order.index(row.label) if row.label in order else 0
    for part in parts:
        gain = part.rows[-1].differences[at - 1] if at else None
        cells.append(f"{100 * gain.score:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" if gain else "")
    return [row.label, row.why, *cells]


def _scores(row: Row, asked: Sequence[Question], data: Path, zoo: Path, out: Path) -> np.ndarray:
    """The row's score at every question: float64 [n], NaN at those that it cannot be asked."""
    from fuse.evaluate.metrics import scores
    from fuse.evaluate.run import Options, evaluate

    taken = np.array([not (row.blind and one.images) for one in asked])
    some = [one for one, take in zip(asked, taken, strict=True) if take]
    if row.together:
        replies = _together([zoo / name for name in row.together], some)
    else:
        folder = zoo / row.parent if row.parent else merged(row, zoo, out)
        replies = evaluate([folder], data, some, Options(max_tokens=16, shown=False))[0].replies
    found = np.full(len(asked), np.nan)
    found[taken] = scores(some, replies)
    return found


def merged(row: Row, zoo: Path, out: Path) -> Path:
    from fuse.merge import merge
    from fuse.planner import make_plan
    from fuse.recipe_yaml import load_recipe

    name = "_".join("".join(c if c.isalnum() else " " for c in row.label).split())
    file = out / f"{name}.yaml"
    file.write_text(row.recipe.replace("ZOO", str(zoo)), encoding="utf-8")
    merge(make_plan(load_recipe(file)), out / name, force=True)
    return out / name


def _together(folders: Sequence[Path], asked: Sequence[Question]) -> dict[str, Reply]:
    from fuse.ask import load
    from fuse.ensemble import ensemble_ask

    answerers = [load(folder) for folder in folders]
    said = {one.key: ensemble_ask(answerers, one.text, one.images, max_tokens=4) for one in asked}
    return {key: Reply(key, text, None, None) for key, text in said.items()}


if __name__ == "__main__":
    main()
