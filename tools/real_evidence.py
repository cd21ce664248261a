"""The table of docs/evidence_real.md: what each part of a composition gives, on members with pretrained encoders.

    python tools/real_evidence.py build/real build/real_evidence --each 60

As tools/evidence.py does: a recipe for every row, merged, asked the same questions, compared with the better parent.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from real_emoji import SKILLS, write_questions

FILES = "weights: PARTS/lite/model.safetensors, projector: PARTS/lite/projector.safetensors"
DINO, LITE_ENTRY = "dino", f"{{name: lite, timm: tf_efficientnet_lite0, {FILES}}}"
SPOKEN = SKILLS[1]  # the skill whose replies are said, and scored as captions too


@dataclass(frozen=True)
class Row:
    """A line of the table: what it shows, the vision entries, and the weights of the two deltas."""

    label: str
    why: str
    vision: tuple[str, ...]
    dino: float
    lite: float
    method: str = "method: task_arithmetic"
    parent: bool = False

    @property
    def recipe(self) -> str:
        host = "dino" if DINO in self.vision[0] or len(self.vision) > 1 else "lite_llm"
        lines = ["base: PARTS/base", "members:", "  dino: PARTS/dino-vlm", "  lite_llm: PARTS/lite-llm"]
        lines += ["language:", f"  {self.method}", f"  weights: {{dino: {self.dino:g}, lite_llm: {self.lite:g}}}"]
        lines += ["vision:", *(f"  - {entry}" for entry in self.vision)]
        return "\n".join([*lines, f"output: {{model: fuse, host: {host}}}"]) + "\n"


BOTH = (DINO, LITE_ENTRY)
BUDGET = ("{from: dino, max_tokens: 20}", LITE_ENTRY)  # 20 at most and 16: no more than DINOv2's 36 alone
ROWS = (
    Row("dino", "parent, 36 tokens", (DINO,), 1, 0, parent=True),
    Row("lite", "parent, 16 tokens", (LITE_ENTRY,), 0, 1, parent=True),
    Row("dino, merged LLM", "merging only", (DINO,), 0.5, 0.5),
    Row("lite, merged LLM", "merging only", (LITE_ENTRY,), 0.5, 0.5),
    Row("both, LLM of dino", "concatenation only", BOTH, 1, 0),
    Row("both, LLM of lite", "concatenation only", BOTH, 0, 1),
    Row("both, base LLM", "concatenation, no deltas", BOTH, 0, 0),
    Row("VisionFuse", "dino, lite; 0.5 each", BOTH, 0.5, 0.5),
    Row("VisionFuse, lite first", "order of branches", BOTH[::-1], 0.5, 0.5),
    Row("VisionFuse, 1.0 each", "deltas summed", BOTH, 1, 1),
    Row("equal budget", "at most 36 tokens in all", BUDGET, 0.5, 0.5),
)


def merged(row: Row, parts: Path, out: Path) -> Path:
    """The folder of a row, made from its recipe."""
    from fuse.merge import merge
    from fuse.planner import make_plan
    from fuse.recipe_yaml import load_recipe

    name = "_".join("".join(c if c.isalnum() else " " for c in row.label).split())
    file = out / f"{name}.yaml"
    file.write_text(row.recipe.replace("PARTS", str(parts)), encoding="utf-8")
    merge(make_plan(load_recipe(file)), out / name, force=True)
    return out / name


def ask(folder: Path, data: Path, asked: Any, out: Path) -> dict[str, Any]:
    """The folder's replies by key."""
    from fuse.evaluate.run import Options, evaluate

    return evaluate([folder], data, asked, Options(max_tokens=12, shown=False))[0].replies


@click.command()
@click.argument("parts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--split", type=click.Choice(["tune", "test"]), default="test", show_default=True)
@click.option("--each", type=click.IntRange(2, 999), default=60, show_default=True, help="Questions of every skill.")
@click.option("--only", help="Only rows whose label holds this, and the parents.")
def main(parts: Path, out: Path, split: str, each: int, only: str | None) -> None:
    """Fill the table and write it, with every row's recipe, to OUT/SPLIT.json."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from fuse.evaluate.metrics import scores
    from fuse.evaluate.questions import read_questions
    from fuse.evaluate.table import Result, tabulate, to_json

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    parts, began = parts.resolve(), time.monotonic()
    data = write_questions(parts, split, each)
    asked = read_questions(data)
    spoken = [replace(one, metric="cider") for one in asked if one.skill == SPOKEN]
    chosen = [row for row in ROWS if row.parent or not only or only in row.label]
    found, caption = {}, {}
    for row in chosen:
        replies = ask(merged(row, parts, out), data, asked, out)
        found[row.label], caption[row.label] = scores(asked, replies), float(scores(spoken, replies).mean())
        click.echo(f"{row.label}: {found[row.label].mean():.3f}, {time.monotonic() - began:.0f} s")
    best = max((row.label for row in chosen if row.parent), key=lambda label: found[label].mean())
    order = [best, *(label for label in found if label != best)]
    table = tabulate(asked, [Result(label, found[label]) for label in order])
    shown = Table("", "", *SKILLS, "CIDEr", "all", f"all - {best}", title=f"{len(asked)} questions ({split})")
    for row in chosen:
        at = order.index(row.label)
        gain = table.rows[-1].differences[at - 1] if at else None
        per = [found[row.label][[one.skill == skill for one in asked]].mean() for skill in SKILLS]
        cells = [f"{100 * value:.0f}" for value in (*per, caption[row.label], found[row.label].mean())]
        cells.append(f"{100 * gain.score:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" if gain else "")
        shown.add_row(row.label, row.why, *cells)
    Console(width=150).print(shown)
    report = {"split": split, "each": each, "seconds": round(time.monotonic() - began), "cider": caption}
    report |= {"table": to_json(table), "recipes": {row.label: row.recipe for row in chosen}}
    (out / f"{split}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
