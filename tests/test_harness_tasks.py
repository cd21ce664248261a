"""Tasks of lm-eval and lmms-eval, made of a file of questions."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from fuse.errors import RecipeError
from fuse.evaluate import metrics

sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "clients"))
import harness_task
import harness_tasks

OPEN = {"question": "what ?", "answer": "Red.", "image": "a.png"}
CHOICE = {"question": "which ?", "answer": "b", "choices": ["a", "b"], "image": "a.png"}


def file_of(folder: Path, *lines: dict[str, Any]) -> Path:
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "q.jsonl"


def opened(file: Path) -> dict[str, Any]:
    yaml = YAML()
    for name in ("images", "prompt", "question", "answer", "chosen", "exact"):
        yaml.constructor.add_constructor("!function", lambda _, node: node.value)
        assert callable(getattr(harness_task, name))
    return yaml.load(file)


@pytest.mark.parametrize(("harness", "most"), [("lm-eval", "max_gen_toks"), ("lmms-eval", "max_new_tokens")])
def test_open_questions(harness: str, most: str, tmp_path: Path) -> None:
    assert harness_tasks.write_task(file_of(tmp_path, OPEN), tmp_path / "out", harness, max_tokens=7) == [
        "fuse_questions"
    ]
    task = opened(tmp_path / "out" / "fuse_questions.yaml")
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    (doc,) = map(json.loads, data.read_text().splitlines())
    assert (task["task"], task["generation_kwargs"][most]) == ("fuse_questions", 7)
    functions = [value for value in task.values() if str(value).startswith("harness_task.")]
    assert len(functions) == 4
    assert all(hasattr(harness_task, name.removeprefix("harness_task.")) for name in functions)
    assert [image.size for image in harness_task.images(doc)] == [(8, 6)]
    assert (harness_task.prompt(doc), harness_task.question(doc)) == ("<image>what ?", "what ?")
    assert harness_task.exact(doc, ["red "]) == harness_task.exact(doc, [[" RED"]]) == {"exact": 1.0}
    assert harness_task.exact(doc, ["blue"]) == {"exact": 0.0}
    assert (tmp_path / "out" / "harness_task.py").read_bytes() == Path(harness_task.__file__).read_bytes()


def test_choices_are_a_task_of_their_own(tmp_path: Path) -> None:
    file = file_of(tmp_path, OPEN, CHOICE)
    assert harness_tasks.write_task(file, tmp_path / "out", "lmms-eval") == ["fuse_questions", "fuse_choices"]
    task = opened(tmp_path / "out" / "fuse_choices.yaml")
    (doc,) = map(json.loads, Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines())
    assert (task["output_type"], harness_task.chosen(doc)) == ("multiple_choice", 1)


@pytest.mark.parametrize(
    ("lines", "harness", "why"),
    [
        ([CHOICE], "lm-eval", "q.jsonl:1: lm-eval's hf-multimodal gives no likelihoods of choices (--harness lmms-eval)"),
        (
            [OPEN, {"question": "w ?", "answer": "r"}], "lm-eval",
            "q.jsonl:2: some questions have images and some have none, and a task is one or the other (two files)",
        ),
        ([{**OPEN, "metric": "vqa", "answers": ["a"] * 4}], "lmms-eval",
         "q.jsonl:1: metric 'vqa' is not among those of the task (exact and choice)"),
    ],
)  # fmt: skip
def test_what_no_task_can_ask(lines: list[Any], harness: str, why: str, tmp_path: Path) -> None:
    for line in lines:
        if "answers" in line:
            line.pop("answer", None)
    with pytest.raises(RecipeError) as told:
        harness_tasks.write_task(file_of(tmp_path, *lines), tmp_path / "out", harness)
    assert str(told.value).removeprefix(f"{tmp_path}/") == why


@given(st.text(max_size=12))
def test_answers_are_compared_as_fuse_compares_them(text: str) -> None:
    assert harness_task.plain(text) == metrics.plain(text)
