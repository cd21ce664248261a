"""docs/demo.svg: a picture as two encoders get it, what parents and fused model answer, and what 500 questions give.

    python tools/demo_picture.py docs/demo.svg --each 100

The scene and the questions are those of `make demo`, the scores those of the table in docs/evidence.md.
"""

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import click
import demo
import numpy as np
from numpy.typing import NDArray
from zoo_world import GREY

WIDE, LEFT, TOP, STEP = 880, 28, 58, 27  # of the drawing; its left edge, its head, a line of the table
SIDE, SMALL = 132, 84  # of a picture
COLUMNS = (LEFT, 256, 450, 664)  # question, hue, form, fused
BAR = 250  # 100 points
STYLE = """
text { font: 15px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.card { fill: #ffffff; stroke: #d0d7de } .rule { stroke: #d0d7de } .soft { fill: #59636e } .bold { font-weight: 600 }
.right { fill: #1a7f37; font-weight: 600 } .wrong { fill: #b3261e } .bar { fill: #8c959f } .best { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .card { fill: #0d1117; stroke: #3d444d } .rule { stroke: #3d444d } .soft { fill: #9198a1 }
.right { fill: #3fb950 } .wrong { fill: #ff7b72 } .bar { fill: #6e7681 } .best { fill: #3fb950 } }
""".strip()


@dataclass(frozen=True)
class Shown:
    """What the drawing tells.

    pictures: caption -> [side, side, 3] of uint8: the picture, and as each parent gets it. answers: (question, right
    answer, what each model said). scores: title -> model -> right answers out of 100.
    """

    pictures: Mapping[str, NDArray[np.uint8]]
    models: Sequence[str]
    answers: Sequence[tuple[str, str, Sequence[str]]]
    scores: Mapping[str, Mapping[str, float]]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--zoo", type=click.Path(file_okay=False, exists=True, path_type=Path), default=demo.ROOT / "recipes/zoo")
@click.option("--each", type=click.IntRange(2, 999), default=100, show_default=True, help="Questions of every skill.")
def main(file: Path, zoo: Path, each: int) -> None:
    """Fuse, ask, score, and draw FILE."""
    with tempfile.TemporaryDirectory() as folder:
        file.write_text(svg(found(zoo, Path(folder), each)), encoding="utf-8")


def found(zoo: Path, out: Path, each: int) -> Shown:
    """Everything that the drawing tells, computed anew in a folder."""
    import evidence

    from fuse.ask import ask, load
    from fuse.commands.merge import command as merge

    with contextlib.redirect_stdout(io.StringIO()):
        merge.main([str(zoo / "visionfuse.yaml"), str(out / "fused"), "--quiet"], standalone_mode=False)
    scene, seen = demo.drawn(out / "picture.png")
    models = [load(folder) for folder in (zoo / "hue", zoo / "form", out / "fused")]
    asked = [
        (question, right, [ask(model, question, images=(out / "picture.png",), max_tokens=4) for model in models])
        for question, right, _ in demo.asked(scene)
    ]
    eyes = {name: view(model.processor, seen) for name, model in zip(demo.PARENTS, models[:2], strict=True)}
    grey = np.repeat((eyes["form"] @ np.array(GREY))[..., None], 3, -1)
    sides = {name: len(pixels) for name, pixels in eyes.items()}
    pictures = {
        "the picture": np.asarray(seen),
        f"{sides['hue']} x {sides['hue']} pixels": eyes["hue"],
        f"{sides['form']} x {sides['form']}, without hue": grey.round().astype(np.uint8),
    }
    rows = [row for row in evidence.two() if row.label in (*demo.PARENTS, "VisionFuse")]
    with contextlib.redirect_stdout(io.StringIO()):
        skills = evidence.TABLES["two"][1]
        table = evidence.fill(rows, skills, zoo.resolve(), out / "two", "test", each)
    count = each * len(skills)
    titles = {"mean of questions": f"right of 100, {count} questions", "color+shape": "of those that need both"}
    return Shown(pictures, (*demo.PARENTS, "fused"), asked, scores(table, titles))


def view(processor: object, picture: object) -> NDArray[np.uint8]:
    """[side, side, 3]: the picture as a member's own processor hands it to its encoder."""
    made = processor.image_processor(picture, return_tensors="np")  # type: ignore[attr-defined]
    how = processor.image_processor  # type: ignore[attr-defined]
    pixels = np.moveaxis(np.asarray(made["pixel_values"])[0], 0, -1) * how.image_std + how.image_mean
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def scores(table: Mapping[str, object], titles: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """title -> model -> right answers out of 100, from `evidence.fill`."""
    whole = table["tables"]["all"]  # type: ignore[index]
    rows = {row["name"]: row["scores"] for row in whole["rows"]}
    names = ["fused" if name == "VisionFuse" else name for name in whole["folders"]]
    return {
        title: {name: round(100 * score["score"], 1) for name, score in zip(names, rows[row], strict=True)}
        for row, title in titles.items()
    }


def svg(shown: Shown) -> str:
    """The drawing, for light and dark pages; it asks for no font and no file."""
    table = TOP + SIDE + 66
    bars = table + STEP * len(shown.answers) + 46
    high = bars + STEP * len(shown.models) + 18
    parts = [f'<rect class="card" x=".5" y=".5" width="{WIDE - 1}" height="{high - 1}" rx="10"/>']
    parts.append(_text(LEFT, 34, "Two models, one sees color and one sees shape, become one that sees both", "bold"))
    for x, (caption, pixels) in zip(COLUMNS[:-1], shown.pictures.items(), strict=True):
        parts += [_picture(x, TOP, SIDE, pixels), _text(x, TOP + SIDE + 20, caption, "soft")]
    parts.append(_text(COLUMNS[-1], TOP + SIDE + 20, "both, one after the other", "soft"))
    for number, pixels in enumerate(list(shown.pictures.values())[1:]):
        parts.append(_picture(COLUMNS[-1] + number * (SMALL + 8), TOP + SIDE - SMALL, SMALL, pixels))
    for x, head in zip(COLUMNS, ("asked about the picture", *shown.models), strict=True):
        parts.append(_text(x, table, head, "bold"))
    for number, (question, right, said) in enumerate(shown.answers, 1):
        y = table + number * STEP
        parts.append(f'<path class="rule" d="M{LEFT} {y - 19}H{WIDE - LEFT}"/>')
        parts.append(_text(COLUMNS[0], y, question))
        for x, answer in zip(COLUMNS[1:], said, strict=True):
            mark = ("✓", "right") if answer == right else ("✗", "wrong")
            parts.append(_text(x, y, f"{mark[0]} {answer}", mark[1]))
    for number, (title, values) in enumerate(shown.scores.items()):
        x = COLUMNS[2 * number]
        parts.append(_text(x, bars, title, "bold"))
        for line, model in enumerate(shown.models, 1):
            y = bars + line * STEP
            best = "best" if values[model] == max(values.values()) else "bar"
            length = values[model] / 100 * BAR
            parts.append(_text(x, y, model))
            parts.append(f'<rect class="{best}" x="{x + 52}" y="{y - 13}" width="{length:.1f}" height="16" rx="2"/>')
            parts.append(_text(x + 60 + length, y, f"{values[model]:.0f}"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {high}" width="{WIDE}" height="{high}">\n'
        f"<style>\n{STYLE}\n</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, look: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{f" class={chr(34)}{look}{chr(34)}" if look else ""}>{escape(words)}</text>'


def _picture(x: float, y: float, wide: float, pixels: NDArray[np.uint8]) -> str:
    """Pixels as one rectangle for each run of a colour in a row, over one of the commonest colour."""
    side = len(pixels)
    codes = ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in pixels.reshape(-1, 3)]
    ground = max(set(codes), key=codes.count)
    paths: dict[str, list[str]] = {}
    for row in range(side):
        start = 0
        for column in range(1, side + 1):
            code = codes[row * side + start]
            if column == side or codes[row * side + column] != code:
                if code != ground:
                    paths.setdefault(code, []).append(f"M{start} {row}h{column - start}v1h-{column - start}z")
                start = column
    drawn = "".join(f'<path fill="{code}" d="{"".join(runs)}"/>' for code, runs in paths.items())
    frame = f'<rect width="{side}" height="{side}" fill="{ground}"/>'
    place = f"translate({x:g} {y:g}) scale({wide / side:.5f})"
    return f'<g transform="{place}" shape-rendering="crispEdges">{frame}{drawn}</g>'


if __name__ == "__main__":
    main()
