"""Writes a split of the zoo's questions: a JSONL file that `fuse eval` reads, and one picture for each question.

    python tools/zoo_questions.py build/zoo/test --split test --each 100

Every skill has the same number of questions; no scene is asked about twice. The splits never share a scene.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import click
from zoo_world import draw, new_scene, questions

SKILLS = ("count", "presence", "color", "shape", "letter", "color+shape", "color+letter", "letter+shape")
SPLITS = {"tune": 1, "test": 2}


def write_questions(folder: Path, split: str, each: int, skills: Sequence[str] = SKILLS) -> Path:
    """Draw `each` questions of every skill under `folder`; the JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for skill in skills:
        for number in range(each):
            random = Random(f"{SPLITS[split]} {skill} {number}")
            scene = new_scene(random)
            asked = next(one for one in questions(scene, random) if one.skill == skill)
            name = f"{skill.replace('+', '_')}_{number:03}.png"
            draw(scene, random).save(folder / name)
            line = {"id": name.removesuffix(".png"), "image": name, "question": asked.text, "answer": asked.answer}
            lines.append(json.dumps({**line, "skill": skill}))
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--split", type=click.Choice(list(SPLITS)), default="test", show_default=True)
@click.option("--each", type=click.IntRange(1, 999), default=100, show_default=True, help="Questions of every skill.")
def main(folder: Path, split: str, each: int) -> None:
    """Write the questions and pictures of one split into FOLDER."""
    click.echo(write_questions(folder, split, each))


if __name__ == "__main__":
    main()
