"""The classes that lmms-eval loads, against a stand-in of what they take from it; tools/clients/harness.py runs it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fuse.errors import RecipeError
from tests import tiny_processors, tiny_vlm


@dataclass
class GenerationResult:
    text: Any
    token_counts: Any = None


class lmms:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str
    chat_class_path: str


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`fuse.clients.lmms`, imported beside the stand-in."""
    parts = {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.instance": {"GenerationResult": GenerationResult},
        "lmms_eval.api.model": {"lmms": lmms}, "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }  # fmt: skip
    for name, has in parts.items():
        module = ModuleType(name)
        vars(module).update(has)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "fuse.clients.lmms", raising=False)
    yield import_module("fuse.clients.lmms")
    sys.modules.pop("fuse.clients.lmms", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llava")
    tiny_processors.save(tiny_vlm.build("llava", 1), made)
    return made


DOCS = [{"text": f"w{5 + i} w6", "picture": Image.new("RGB", (40, 30), (40 * i, 9, 9))} for i in range(3)]


def simple(number: int, options: Any, text: str = "") -> Any:
    doc = DOCS[number]
    return SimpleNamespace(args=(text or doc["text"], options, lambda doc: [doc["picture"]], number, "task", "test"))


def chat(number: int, options: Any, kind: str = "image") -> Any:
    def messages(doc: Any) -> Any:
        parts = [{"type": kind, "url": doc["picture"]}, {"type": "text", "text": doc["text"]}]
        return [{"role": "user", "content": parts}]

    return SimpleNamespace(args=("", messages, options, number, "task", "test"))


def loaded(module: Any, name: str, folder: Path) -> Any:
    model = getattr(module, name)(str(folder), batch_size=2)
    model.task_dict["task"] = {"test": DOCS}
    return model


def test_the_manifest_names_classes_that_there_are(theirs: Any) -> None:
    told = import_module("fuse.clients.lmms_models").manifest()
    assert told.model_id == "fuse"
    for path, is_simple in ((told.simple_class_path, True), (told.chat_class_path, False)):
        module, _, name = path.rpartition(".")
        assert module == theirs.__name__
        found = getattr(theirs, name)
        assert issubclass(found, lmms)
        assert found.is_simple is is_simple


def test_both_kinds_of_task_hear_the_same(theirs: Any, folder: Path) -> None:
    one, other = loaded(theirs, "Fuse", folder), loaded(theirs, "FuseChat", folder)
    options = [
        {"max_new_tokens": 3, "temperature": 0},
        {"max_new_tokens": 5, "do_sample": False},
        {"max_new_tokens": 3},
    ]
    first = [r.text for r in one.generate_until([simple(i, some) for i, some in enumerate(options)])]
    second = [r.text for r in other.generate_until([chat(i, some) for i, some in enumerate(options)])]
    assert first == second
    assert [len(text.split()) for text in first] == [3, 5, 3]


def test_an_answer_ends_at_a_stop_word(theirs: Any, folder: Path) -> None:
    model = loaded(theirs, "Fuse", folder)
    (whole,) = model.generate_until([simple(0, {"max_new_tokens": 4})])
    stop = whole.text.split()[2]
    (cut,) = model.generate_until([simple(0, {"max_new_tokens": 4, "until": ["none", stop]})])
    assert cut.text == whole.text.split(stop)[0]


def test_choices_come_as_losses(theirs: Any, folder: Path) -> None:
    model = loaded(theirs, "Fuse", folder)
    (word,) = model.generate_until([simple(0, {"max_new_tokens": 1})])
    other = next(f"w{i}" for i in range(5, 20) if f"w{i}" != word.text)
    targets = [(0, f" {word.text}"), (0, f" {other}"), (1, lambda doc: doc["text"])]
    found = [one.text for one in model.loglikelihood([simple(i, target) for i, target in targets])]
    assert [greedy for _, greedy in found][:2] == [True, False]
    assert 0 < found[0][0] < found[1][0]
    assert found[2][0] > 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"temperature": 0.7},
            "answers are greedy, and the task asks for temperature 0.7 (--gen_kwargs temperature=0)",
        ),
        ({"num_beams": 4}, "answers are greedy, and the task asks for num_beams 4 (--gen_kwargs num_beams=1)"),
        (
            {"image_aspect_ratio": "pad"},
            "generation_kwargs has no 'image_aspect_ratio' here (max_new_tokens and until)",
        ),
    ],
)
def test_what_a_task_may_not_ask_for(theirs: Any, folder: Path, options: Any, why: str) -> None:
    with pytest.raises(RecipeError) as told:
        loaded(theirs, "Fuse", folder).generate_until([simple(0, options)])
    assert str(told.value) == why


def test_what_is_no_still_image(theirs: Any, folder: Path) -> None:
    with pytest.raises(RecipeError) as told:
        loaded(theirs, "FuseChat", folder).generate_until([chat(0, {}, "video")])
    assert str(told.value) == "video is not supported (still images and text)"
    request = SimpleNamespace(args=("w5", {}, lambda doc: [[1, 2]], 0, "task", "test"))
    with pytest.raises(RecipeError) as told:
        loaded(theirs, "Fuse", folder).generate_until([request])
    assert str(told.value) == "a visual is a list (PIL images and files of still images work)"


@pytest.mark.parametrize("size", ["auto", "auto:4", "2.5", -1, "0"])
def test_a_batch_that_is_no_number(theirs: Any, folder: Path, size: int | str) -> None:
    with pytest.raises(RecipeError) as told:
        theirs.Fuse(str(folder), batch_size=size)
    assert str(told.value) == f"batch_size {size!r} is no number of questions (--batch_size 4)"


def test_unknown_arguments_and_rounds(theirs: Any, folder: Path) -> None:
    with pytest.raises(RecipeError) as told:
        theirs.Fuse(str(folder), dtype="auto")
    assert str(told.value) == "model_args has no dtype (pretrained and device)"
    with pytest.raises(RecipeError) as told:
        loaded(theirs, "Fuse", folder).generate_until_multi_round([])
    assert str(told.value) == "tasks of several rounds are not supported (tasks of generate_until or multiple_choice)"
