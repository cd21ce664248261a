"""The embedded default: two models that see different things become one that sees both, and a table says what it gives.

    python tools/demo.py build/demo

Everything comes from recipes/zoo: members of a million parameters or fewer, trained by tools/train_zoo.py. Shows the
plan, merges, asks parents and fused model about one picture, and prints the tables of the evidence on fewer questions.
"""

import contextlib
import io
import json
import os
import time
from pathlib import Path
from random import Random

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.style import Style
from rich.table import Table
from rich.text import Text
from zoo_world import NUMBERS, SIDE, Scene, draw, new_scene

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything lies in the folder
ROOT = Path(__file__).parent.parent
PARENTS = ("hue", "form")
DOTS = 36  # a shown picture's side in the terminal, in half characters
Asked = tuple[str, str, str]  # question, the right answer, whose sight it needs


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--zoo", type=click.Path(file_okay=False, exists=True, path_type=Path), default=ROOT / "recipes" / "zoo")
@click.option("--each", type=click.IntRange(2, 999), default=20, show_default=True, help="Questions of every skill.")
def main(out: Path, zoo: Path, each: int) -> None:
    """Fuse two members of the zoo into OUT and show what each of the three sees."""
    import torch

    from fuse.commands.merge import command as merge

    torch.set_num_threads(1)  # models this small gain nothing from more
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    recipe, fused = _short(zoo / "visionfuse.yaml"), out / "fused"
    began = time.monotonic()
    console.print("[bold]1. the parents: two models that look at pictures through encoders of their own[/bold]")
    console.print(members(zoo))
    console.print(f"\n[bold]2. fuse plan {recipe}[/bold]")
    console.print(plan(recipe), markup=False, soft_wrap=True)
    console.print(f"\n[bold]3. fuse merge {recipe} {fused}[/bold]")
    merge.main([str(recipe), str(fused), "--force"], standalone_mode=False)
    scene, seen = drawn(out / "picture.png")
    console.print(f"\n[bold]4. parents and fused model look at {out / 'picture.png'}[/bold]")
    if console.is_terminal:
        console.print(blocks(seen))
    console.print("; ".join(f"{t.place}: {t.color} {t.shape} with the letter {t.letter}" for t in scene))
    answers = talk(scene, out / "picture.png", [*(zoo / name for name in PARENTS), fused])
    console.print(answers)
    console.print(f"\n[bold]5. does it help? python tools/evidence.py {out / 'evidence'} --each {each}[/bold]")
    console.print("Every row is merged and asked; this takes most of the time.")
    tables = evidence(zoo, out / "evidence", each)
    console.print("\n".join(tables), markup=False, soft_wrap=True)
    console.print(onward(recipe, fused, out), soft_wrap=True)
    console.print(f"\n{time.monotonic() - began:.0f} s in all.")


def _short(path: Path) -> Path:
    """The path as one types it here."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def members(zoo: Path) -> Table:
    """What each parent takes and how large it is, read from its own files."""
    table = Table("member", "sees", "takes pictures of", "visual tokens", "parameters")
    sees = {"hue": "color and place", "form": "shape and place; blind to hue"}
    for name in PARENTS:
        eyes = json.loads((zoo / name / "config.json").read_text())["vision_config"]
        side, tokens = eyes["image_size"], (eyes["image_size"] // eyes["patch_size"]) ** 2
        size = (zoo / name / "model.safetensors").stat().st_size // 2
        table.add_row(name, sees[name], f"{side} x {side} pixels", str(tokens), f"{size:,}")
    return table


def plan(recipe: Path) -> str:
    """What `fuse plan --image-size` prints, without the names of tensors."""
    from fuse.plan_view import plan_text
    from fuse.planner import make_plan
    from fuse.recipe_yaml import load_recipe
    from fuse.visual_tokens import cost_of

    made = make_plan(load_recipe(recipe))
    return plan_text(made, cost=cost_of(made, (SIDE, SIDE)))


def drawn(file: Path) -> tuple[Scene, Image.Image]:
    """A scene of four things, of a seed that no split of the questions uses, drawn into the file."""
    random = Random("demo")
    scene = new_scene(random, 4, 4)
    seen = draw(scene, random)
    seen.save(file)
    return scene, seen


def blocks(picture: Image.Image) -> Text:
    """The picture in the terminal: two pixels a character, one above the other."""
    colors = np.asarray(picture.resize((DOTS, DOTS), Image.Resampling.BOX))
    text = Text()
    for row in range(0, DOTS, 2):
        for column in range(DOTS):
            above, below = (f"rgb({','.join(map(str, colors[row + half, column]))})" for half in (0, 1))
            text.append("▀", Style(color=above, bgcolor=below))
        text.append("\n")
    return text


def asked(scene: Scene) -> list[Asked]:
    """Questions that need one parent's sight, the other's, either's, and both."""
    a, b, c, d = scene
    return [
        (f"what color is at {a.place} ?", a.color, "hue"),
        (f"what shape is at {b.place} ?", b.shape, "form"),
        ("how many things ?", NUMBERS[len(scene)], "either"),
        (f"what shape is {c.color} ?", f"{c.place} {c.shape}", "both"),
        (f"what color is {d.shape} ?", f"{d.place} {d.color}", "both"),
    ]


def talk(scene: Scene, image: Path, folders: list[Path]) -> Table:
    """What every folder says to every question; right answers are green."""
    from fuse.ask import ask, load

    models = [load(folder) for folder in folders]
    table = Table("question", "needs the sight of", "right", *(folder.name for folder in folders))
    for question, right, needs in asked(scene):
        said = [ask(model, question, images=(image,), max_tokens=4) for model in models]
        marked = (f"[green]{escape(one)}[/green]" if one == right else escape(one) for one in said)
        table.add_row(question, needs, right, *marked)
    return table


def evidence(zoo: Path, out: Path, each: int) -> list[str]:
    """The tables of docs/evidence.md, as they are printed."""
    from evidence import TABLES, fill

    found = []
    for name, (rows, skills) in TABLES.items():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            fill(rows(), skills, zoo.resolve(), out / name, "test", each)
        found.append(printed.getvalue().rstrip())
    return found


def onward(recipe: Path, fused: Path, out: Path) -> str:
    question = out / "evidence" / "two" / "questions" / "questions.jsonl"
    return f"""
[bold]6. go on[/bold]
fuse ask {fused} "what shape is red ?" --image {out / "picture.png"}
fuse eval {recipe.parent / "hue"} {recipe.parent / "form"} {fused} --data {question} --max-tokens 4
python tools/zoo_questions.py {out / "tune"} --split tune
fuse search {recipe} --data {out / "tune" / "questions.jsonl"} --out {out / "found"} --max-tokens 4"""


if __name__ == "__main__":
    main()
