"""`make demo-text`: two fine-tunes of SmolLM2-135M become one model that has both skills.

    python tools/demo_text.py build/demo

Writes the members (real weights from a package, low-rank deltas from recipes/demo), shows the plan, merges, and asks
parents and merged model the same held-out questions.
"""

import json
import os
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from packages
RECIPE = Path(__file__).parent.parent / "recipes" / "demo" / "two_skills.yaml"
QUESTIONS = RECIPE.parent / "questions.jsonl"
SHOWN, SCORED = 2, 20  # questions of each skill: shown one by one, and counted


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(out: Path) -> None:
    """Write members and merged model under OUT and show what each of them answers."""
    from demo_members import write_members

    from fuse.commands.merge import command as merge
    from fuse.plan_view import plan_text
    from fuse.planner import make_plan
    from fuse.recipe_yaml import load_recipe

    console = Console(highlight=False)
    recipe, merged = out / "two_skills.yaml", out / "merged"
    began = time.monotonic()
    console.print("[bold]1. members: SmolLM2-135M-Instruct and two low-rank fine-tunes of it[/bold]")
    write_members(out)
    recipe.write_text(RECIPE.read_text().replace("../../build/demo/", ""))
    console.print(f"\n[bold]2. fuse plan {recipe}[/bold]")
    console.print(plan_text(make_plan(load_recipe(recipe))), markup=False)
    console.print(f"\n[bold]3. fuse merge {recipe} {merged}[/bold]")
    merge.main([str(recipe), str(merged), "--force"], standalone_mode=False)
    console.print("\n[bold]4. the same questions to parents and merged model[/bold]")
    show(console, [out / name for name in ("base", "dates", "extract", "merged")])
    click.echo(f'\n{time.monotonic() - began:.0f} s in all. Ask it yourself: fuse ask {merged} "your question"')


def show(console: Console, folders: list[Path]) -> None:
    """A table of answers, and one of exact matches per skill."""
    from fuse.ask import ask_many, load

    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    skills = list(dict.fromkeys(row["skill"] for row in rows))
    chosen = {skill: [row for row in rows if row["skill"] == skill][:SCORED] for skill in skills}
    flat = [row for skill in skills for row in chosen[skill]]
    questions = [row["question"] for row in flat]
    said = {folder.name: ask_many(load(folder), questions, max_tokens=28) for folder in folders}

    answers = Table("question", "wanted", *said, title="answers, greedy", show_lines=True)
    for skill in skills:
        start = flat.index(chosen[skill][0])
        for i in range(start, start + SHOWN):
            cells = [_mark(said[name][i], flat[i]["answer"]) for name in said]
            answers.add_row(escape(flat[i]["question"]), escape(flat[i]["answer"]), *cells)
    console.print(answers)
    scores = Table("skill", *said, title=f"exact matches of {SCORED} held-out questions")
    for skill in skills:
        where = [i for i, row in enumerate(flat) if row["skill"] == skill]
        scores.add_row(skill, *(str(sum(said[n][i] == flat[i]["answer"] for i in where)) for n in said))
    console.print(scores)


def _mark(answer: str, wanted: str) -> str:
    short = escape(answer if len(answer) <= 90 else answer[:87] + "...")
    return f"[green]{short}[/green]" if answer == wanted else short


if __name__ == "__main__":
    main()
