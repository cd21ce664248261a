"""The data file of `fuse eval`: what its lines mean, and one sentence for everything that is wrong."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fuse.errors import FuseError, MachineError, RecipeError
from fuse.evaluate.json_lines import MAX_LINE
from fuse.evaluate.questions import KEYS, METRICS, Question, check_images, read_questions, with_metric

DOCUMENT = Path(__file__).parent.parent / "docs" / "evaluation.md"
GOOD = {"question": "What is it?", "answer": "cat"}


def write(folder: Path, *lines: Any) -> Path:
    """data.jsonl of objects, texts or bytes, a line each."""
    file = folder / "data.jsonl"
    raw = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines]
    file.write_bytes(b"".join(line + b"\n" for line in raw))
    return file


def refusal(folder: Path, *lines: Any) -> str:
    """The sentence for a data file, which is data.jsonl of the folder, without that folder."""
    with pytest.raises(RecipeError) as error:
        read_questions(write(folder, *lines))
    return str(error.value).replace(f"{folder}/", "")


def test_every_key(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"id": "q1", "image": "a.png", "question": "How many?", "answer": "2", "skill": " counting ", "metric": "vqa"},
        {"id": 12, "image": ["a.png", "/b.png"], "question": "Which?", "answer": "x", "choices": ["x", "y"]},
        {"question": "Colour?", "answers": ["red"] * 10},
        {"question": "Say it.", "answers": ["red", "crimson"], "metric": "exact"},
        {"question": "Describe.", "answers": ["a cat"], "metric": "cider", "skill": "captions"},
        {"question": "Describe.", "answer": "a dog", "metric": "cider", "skill": "captions"},
    )
    where = [f"{file}:{n}" for n in range(1, 7)]
    a, b = tmp_path / "a.png", Path("/b.png")
    assert read_questions(file) == (
        Question(1, "q1", "How many?", (a,), ("2",), (), "counting", "vqa", where[0]),
        Question(2, "12", "Which?", (a, b), ("x",), ("x", "y"), "all", "choice", where[1]),
        Question(3, "3", "Colour?", (), ("red",) * 10, (), "all", "vqa", where[2]),
        Question(4, "4", "Say it.", (), ("red", "crimson"), (), "all", "exact", where[3]),
        Question(5, "5", "Describe.", (), ("a cat",), (), "captions", "cider", where[4]),
        Question(6, "6", "Describe.", (), ("a dog",), (), "captions", "cider", where[5]),
    )


def test_blank_lines_windows_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    file = tmp_path / "data.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \t\n" + line)
    assert [(q.line, q.key) for q in read_questions(file)] == [(1, "1"), (4, "4")]


def test_text_is_kept_as_it_is(tmp_path: Path) -> None:
    row = {"question": "  Où?\n", "answers": [" Là. "], "choices": [" Là. ", "ici"]}
    [question] = read_questions(write(tmp_path, row))
    assert (question.text, question.answers, question.choices) == ("  Où?\n", (" Là. ",), (" Là. ", "ici"))


WRONG = {
    '{"question": "x", "answer": "y"': "data.jsonl:2:32: not JSON: Expecting ',' delimiter",
    "plain words": "data.jsonl:2:1: not JSON: Expecting value",
    "[1]": "data.jsonl:2: holds a JSON list, not an object",
    '{"question": "x", "question": "y", "answer": "z"}': "data.jsonl:2: key 'question' stands twice in one object",
    '{"question": "x", "answer": NaN}': "data.jsonl:2: NaN is not a JSON number",
    '{"question": "x", "answer": "\\ud800"}': "data.jsonl:2: holds half of a surrogate pair, which is no text",
    '{"question": "x", "answer": 1' + "0" * 5000 + "}": "data.jsonl:2: not JSON: a number has thousands of digits",
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_lines_that_are_no_object(line: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, GOOD, line) == WRONG[line]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    assert refusal(tmp_path, GOOD, b'{"question": "\xff"}') == "data.jsonl:2: not UTF-8 at byte 14"
    assert refusal(tmp_path, b"[" * 100_000) == "data.jsonl:1: nested too deeply"


def test_a_line_without_end(tmp_path: Path) -> None:
    fits = {**GOOD, "question": "x" * (MAX_LINE - len(json.dumps({**GOOD, "question": ""})) - 1)}
    assert len(read_questions(write(tmp_path, fits))) == 1
    assert (
        refusal(tmp_path, GOOD, {**fits, "question": fits["question"] + "x"})
        == "data.jsonl:2: the line is longer than 1,048,576 bytes (one JSON object a line, and images by path)"
    )


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"answr": "x"}, "unknown key 'answr' (did you mean: answer, answers)"),
    ({"\x1b[31m": "x"}, f"unknown key '\\x1b[31m' (known: {', '.join(sorted(KEYS))})"),
    ({"question": None}, "question is null, not text"),
    ({"question": 3}, 'question is the number 3, not text (as text: "3")'),
    ({"question": " \n"}, "question is empty"),
    ({"answer": True}, "answer is true, not text"),
    ({"answer": 2.5}, 'answer is the number 2.5, not text (as text: "2.5")'),
    ({"answer": ["a"]}, "answer is a list, not text (a list goes under answers)"),
    ({"answer": ""}, "answer is empty"),
    ({"answers": ["a"]}, "has both answer and answers (give one of them)"),
    ({"image": ""}, "image is empty"),
    ({"image": {}}, "image is an object, not text"),
    ({"image": []}, "image is an empty list (leave the key out)"),
    ({"image": ["a.png", 3]}, 'image[1] is the number 3, not text (as text: "3")'),
    ({"image": "https://x.org/a.png"}, "image 'https://x.org/a.png' is not a path (images are files on disk)"),
    ({"image": "data:image/png;base64,AAAA"}, "image 'data:image/png;base64,AAAA' is not a path (images are files on disk)"),
    ({"image": "a\0.png"}, "image 'a\\x00.png' holds a control character"),
    ({"choices": "cat"}, "choices is text, not a list of texts"),
    ({"choices": []}, "choices is an empty list"),
    ({"choices": ["cat"]}, "choices has one choice only"),
    ({"choices": ["cat", "dog", "dog"]}, "choice 'dog' stands 2 times in choices"),
    ({"choices": ["cats", "dog"]}, "answer 'cat' is not among the choices (did you mean: cats)"),
    ({"choices": ["cat", False]}, "choices[1] is false, not text"),
    ({"skill": ""}, "skill is empty"),
    ({"skill": ["a"]}, "skill is a list, not text"),
    ({"metric": "exakt"}, "unknown metric 'exakt' (did you mean: exact)"),
    ({"metric": "choice"}, "metric 'choice' needs choices"),
    ({"metric": "vqa", "choices": ["cat", "dog"]}, "metric 'vqa' does not look at choices (leave one of them out)"),
    ({"metric": "cider", "answer": "?!"}, "answer '?!' has no words for metric 'cider'"),
    ({"metric": "cider"}, "is the only question with metric 'cider', which weighs words by how few of the questions have them (give at least 2)"),
    ({"id": 1.5}, 'id is the number 1.5, not text (as text: "1.5")'),
    ({"id": False}, "id is false, not text"),
    ({"id": ""}, "id is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), SENTENCES)
def test_wrong_values(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, GOOD, {**GOOD, **change}) == f"data.jsonl:2: {sentence}"


def test_missing_keys(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"answer": "x"}) == "data.jsonl:1: question is missing"
    told = "data.jsonl:1: answer is missing (answer: text, or answers: a list of texts)"
    assert refusal(tmp_path, {"question": "x"}) == told
    assert refusal(tmp_path, {"question": "x", "answers": []}) == "data.jsonl:1: answers is an empty list"
    assert refusal(tmp_path, {"question": "x", "answers": ["y", " "]}) == "data.jsonl:1: answers[1] is empty"


def test_lines_without_answer_where_none_is_needed(tmp_path: Path) -> None:
    rows = [{"question": "x"}, {"question": "x", "choices": ["a", "b"]}, GOOD]
    found = read_questions(write(tmp_path, *rows), labelled=False)
    assert [(q.answers, q.metric) for q in found] == [((), "exact"), ((), "choice"), (("cat",), "exact")]
    with pytest.raises(RecipeError, match=r"data\.jsonl:1: answer is empty$"):
        read_questions(write(tmp_path, {"question": "x", "answer": ""}), labelled=False)


@pytest.mark.parametrize("count", [2, 3])
def test_few_answers_are_ambiguous(count: int, tmp_path: Path) -> None:
    row = {"question": "x", "answers": ["sofa", "couch", "settee"][:count]}
    assert refusal(tmp_path, row) == (
        f"data.jsonl:1: VQA accuracy leaves each of the {count} answers out in turn and wants 3 others that agree "
        '(give one answer, or the answers of 4 people or more; for answers of which any is right say "metric": "exact")'
    )
    assert read_questions(write(tmp_path, {**row, "metric": "exact"}))[0].metric == "exact"


def test_ids_are_unique(tmp_path: Path) -> None:
    assert refusal(tmp_path, {**GOOD, "id": "a"}, GOOD, {**GOOD, "id": "a"}) == (
        "data.jsonl:3: id 'a' is already that of line 1 (a line without id has its number as id)"
    )
    assert refusal(tmp_path, {**GOOD, "id": 2}, GOOD) == (
        "data.jsonl:2: id '2' is already that of line 1 (a line without id has its number as id)"
    )


def test_captions_have_skills_of_their_own(tmp_path: Path) -> None:
    caption = {**GOOD, "metric": "cider"}
    assert refusal(tmp_path, caption, caption, GOOD) == (
        "data.jsonl:3: skill 'all' has questions with metric 'cider' and with 'exact', which have different scales "
        "(give captions a skill of their own)"
    )


def test_files_that_are_none(tmp_path: Path) -> None:
    told = "holds no questions (one JSON object a line: question, answer, image)"
    assert refusal(tmp_path) == refusal(tmp_path, "", " ") == f"data.jsonl: {told}"
    with pytest.raises(RecipeError) as error:
        read_questions(tmp_path / "no.jsonl")
    assert str(error.value) == f"{tmp_path}/no.jsonl: there is no such file"
    with pytest.raises(RecipeError) as error:
        read_questions(tmp_path)
    assert str(error.value) == f"{tmp_path}: is not a plain file (name a JSON Lines file)"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, GOOD)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MachineError) as error:
        read_questions(file)
    assert str(error.value) == f"{file}: cannot be read (Permission denied)"


def test_one_metric_for_all(tmp_path: Path) -> None:
    questions = read_questions(write(tmp_path, GOOD, {**GOOD, "metric": "vqa"}))
    assert [q.metric for q in with_metric(questions, "exact")] == ["exact", "exact"]
    assert [q.metric for q in with_metric(questions, "cider")] == ["cider", "cider"]
    with pytest.raises(RecipeError) as error:
        with_metric(questions, "choice")
    assert str(error.value) == f"{tmp_path}/data.jsonl:1: metric 'choice' needs choices"
    with pytest.raises(RecipeError) as error:
        with_metric(questions[:1], "cider")
    assert "is the only question with metric 'cider'" in str(error.value)


def test_images_that_do_not_open(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    check_images(read_questions(write(tmp_path, GOOD, {**GOOD, "image": "good.png"}, {**GOOD, "image": ["good.png"]})))
    for image, problem in {
        "no.png": "there is no such file",
        "folder": "is a folder, not an image",
        "text.png": "is not an image that fuse can read (PNG, JPEG, WebP, GIF, BMP and TIFF are read)",
    }.items():
        questions = read_questions(
            write(tmp_path, {**GOOD, "image": "good.png"}, {**GOOD, "image": ["good.png", image]})
        )
        with pytest.raises(RecipeError) as error:
            check_images(questions)
        assert str(error.value) == f"{tmp_path}/data.jsonl:2: image {tmp_path}/{image}: {problem}"


def test_an_image_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    opened: list[Path] = []
    monkeypatch.setattr("fuse.evaluate.questions.open_image", opened.append)
    check_images(read_questions(write(tmp_path, *[{**GOOD, "image": ["a.png", "a.png"]}] * 3)))
    assert opened == [tmp_path / "a.png"]


TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from(METRICS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(row=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1), good=st.booleans())
def test_any_json_is_read_or_refused_in_one_sentence(row: dict[str, Any], good: bool, tmp_path: Path) -> None:
    try:
        questions = read_questions(write(tmp_path, {**row, **GOOD} if good else row))
    except FuseError as error:
        assert error.exit_code == 2 and str(error).startswith(f"{tmp_path}/data.jsonl:1:") and "\n" not in str(error)
    else:
        assert len(questions) == 1 and questions[0].metric in METRICS and questions[0].answers


def test_the_document(tmp_path: Path) -> None:
    """docs/evaluation.md: its example is read as it says, its tables name every key and metric, its sentences are so."""
    sections = re.split(r"^## (.*)\n", DOCUMENT.read_text(), flags=re.MULTILINE)
    told = dict(zip(sections[1::2], sections[2::2], strict=True))
    text = told["The data file"] + told["Metrics"]
    [example] = re.findall(r"```jsonl\n(.*?)```", text, re.DOTALL)
    questions = read_questions(write(tmp_path, *example.splitlines()))
    assert [q.metric for q in questions] == ["exact", "vqa", "choice", "exact", "cider", "cider"]
    assert [q.skill for q in questions] == ["colour", "counting", "comparison", "arithmetic", "captions", "captions"]
    assert [len(q.images) for q in questions] == [1, 1, 2, 0, 1, 1]
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted([*KEYS, *METRICS])
    for change in ({"answr": "x"}, {"choices": ["cats", "dog"]}):
        assert refusal(tmp_path, {**GOOD, **change}).removeprefix("data.jsonl:1: ") in text
