"""Makes a task of lm-eval or lmms-eval out of a file of questions that `fuse eval` reads.

    python tools/clients/harness_tasks.py questions.jsonl build/task --harness lm-eval

The folder is what `--include_path` of both harnesses takes. Open questions become the task `fuse_questions`, those with
choices `fuse_choices`.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import click

from fuse.errors import RecipeError
from fuse.evaluate.questions import Question, check_images, read_questions

HARNESSES = ("lm-eval", "lmms-eval")
CODE = Path(__file__).with_name("harness_task.py")
OPEN, CHOICES = "fuse_questions", "fuse_choices"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
{asked}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
metadata: {{version: 0}}
"""
GENERATE = """\
output_type: generate_until
{sees}
doc_to_target: !function harness_task.answer
process_results: !function harness_task.exact
generation_kwargs: {{until: [], do_sample: false, temperature: 0, {most}: {tokens}}}"""
SEES = {
    ("lm-eval", True): "doc_to_image: !function harness_task.images\ndoc_to_text: !function harness_task.prompt",
    ("lm-eval", False): "doc_to_text: !function harness_task.question",
    ("lmms-eval", True): "doc_to_visual: !function harness_task.images\ndoc_to_text: !function harness_task.question",
    ("lmms-eval", False): "doc_to_text: !function harness_task.question",
}
MOST = {"lm-eval": "max_gen_toks", "lmms-eval": "max_new_tokens"}
CHOOSE = """\
output_type: multiple_choice
doc_to_visual: !function harness_task.images
doc_to_text: !function harness_task.question
doc_to_choice: choices
doc_to_target: !function harness_task.chosen"""


def write_task(file: Path, folder: Path, harness: str, *, max_tokens: int = 32) -> list[str]:
    """Write the tasks of a file of questions under `folder`; their names.

    Raises RecipeError for questions that the harness cannot ask: by another metric than exact or choice, with choices
    in lm-eval (its `hf-multimodal` gives no likelihoods), and with images beside questions without.
    """
    questions = read_questions(file)
    check_images(questions)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, some in ((OPEN, [q for q in questions if not q.choices]), (CHOICES, [q for q in questions if q.choices])):
        if not some:
            continue
        _check(some, harness)
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(_line(question)) + "\n" for question in some), encoding="utf-8")
        sees = SEES[harness, bool(some[0].images)]
        asked = CHOOSE if name == CHOICES else GENERATE.format(sees=sees, most=MOST[harness], tokens=max_tokens)
        metric = "acc" if name == CHOICES else "exact"
        made = TASK.format(name=name, data=json.dumps(str(data.resolve())), asked=asked, metric=metric)
        (folder / f"{name}.yaml").write_text(made, encoding="utf-8")
        names.append(name)
    shutil.copyfile(CODE, folder / CODE.name)
    return names


def _line(question: Question) -> dict[str, object]:
    return {
        "key": question.key, "text": question.text, "images": [str(path.resolve()) for path in question.images],
        "answers": list(question.answers), "choices": list(question.choices), "skill": question.skill,
    }  # fmt: skip


def _check(questions: Sequence[Question], harness: str) -> None:
    for question in questions:
        if question.metric not in ("exact", "choice"):
            told = f"metric {question.metric!r} is not among those of the task"
            raise RecipeError(told, where=question.where, hint="exact and choice")
        if question.choices and harness == "lm-eval":
            told = "lm-eval's hf-multimodal gives no likelihoods of choices"
            raise RecipeError(told, where=question.where, hint="--harness lmms-eval")
        if bool(question.images) != bool(questions[0].images):
            told = "some questions have images and some have none, and a task is one or the other"
            raise RecipeError(told, where=question.where, hint="two files")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--harness", type=click.Choice(HARNESSES), required=True)
@click.option("--max-tokens", type=click.IntRange(1, 8192), default=32, show_default=True)
def main(file: Path, folder: Path, harness: str, max_tokens: int) -> None:
    """Write the tasks of FILE into FOLDER."""
    try:
        click.echo(" ".join(write_task(file, folder, harness, max_tokens=max_tokens)))
    except RecipeError as error:
        raise SystemExit(f"harness_tasks: {error}") from None


if __name__ == "__main__":
    main()
