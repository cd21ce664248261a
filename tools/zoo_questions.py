"""Writes a split of the zoo's questions: a JSONL file that `fuse eval` reads, and one picture for each question.

    python tools/zoo_questions.py build/zoo/test --split test --each 100

Every skill has the same number of questions; no scene is asked about twice. The splits never share a scene.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import click
from zoo_text import told
from zoo_world import KINDS, SPECIAL, VOCABULARY, Asked, Scene, caption, draw, new_scene, questions

SKILLS = ("count", "presence", "color", "shape", "letter", "color+shape", "color+letter", "letter+shape")
CAPTION = "caption"  # tells every color and where it is, which only a visual memory was taught
TEXT_SKILLS = ("reading", "backwards")  # questions without a picture
SPLITS = {"tune": 1, "test": 2}


def write_questions(folder: Path, split: str, each: int, skills: Sequence[str] = SKILLS) -> Path:
    """Draw `each` questions of every skill under `folder`; the JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for skill in skills:
        for number in range(each):
            name, random = f"{skill.replace('+', '_')}_{number:03}", Random(f"{SPLITS[split]} {skill} {number}")
            line = in_words(skill, random) if skill in TEXT_SKILLS else _drawn(skill, random, folder / f"{name}.png")
            lines.append(json.dumps({"id": name, **line, "skill": skill}))
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _drawn(skill: str, random: Random, picture: Path) -> dict[str, str]:
    """A question about a picture, which is written."""
    scene = new_scene(random)
    asked = caption(scene, "color") if skill == CAPTION else _asked(scene, skill, random)
    draw(scene, random).save(picture)
    return {"image": picture.name, "question": asked.text, "answer": asked.answer}


def _asked(scene: Scene, skill: str, random: Random) -> Asked:
    return next(one for one in questions(scene, random) if one.skill == skill)


def in_words(skill: str, random: Random) -> dict[str, str]:
    """A question about words that stand before it, or one to say words backwards."""
    if skill == "backwards":
        words = random.sample(VOCABULARY[len(SPECIAL) :], random.randint(2, 5))
        return {"question": f"say {' '.join(words)} backwards ?", "answer": " ".join(reversed(words))}
    scene = new_scene(random)
    asked = random.choice([one for one in questions(scene, random) if one.skill not in ("count", "presence")])
    words = told(scene, random.sample(list(KINDS), 3), random)
    return {"question": f"{' '.join(words)} {asked.text}", "answer": asked.answer}


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--split", type=click.Choice(list(SPLITS)), default="test", show_default=True)
@click.option("--skill", "skills", multiple=True, type=click.Choice([*SKILLS, CAPTION, *TEXT_SKILLS]), default=SKILLS)
@click.option("--each", type=click.IntRange(1, 999), default=100, show_default=True, help="Questions of every skill.")
def main(folder: Path, split: str, skills: Sequence[str], each: int) -> None:
    """Write the questions and pictures of one split into FOLDER."""
    click.echo(write_questions(folder, split, each, skills))


if __name__ == "__main__":
    main()
