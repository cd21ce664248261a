"""`fuse eval` from the command line: native, text and fused folders; logs that are gone on with; what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fuse.ask import ask, load
from fuse.evaluate.run import labels, stems
from tests import tiny_processors, tiny_text
from tests.cli import fuse_here
from tests.members import save_member
from tests.test_fused_model import own, picture

LINES: list[dict[str, Any]] = [
    {"image": "a.png", "question": "w5 w6", "answer": "w7", "skill": "colour"},
    {"image": "b.png", "question": "w5 w6 w9", "answer": "w8", "skill": "colour"},
    {"image": ["a.png", "b.png"], "question": "w9 w6", "choices": ["w5", "w6 w7", "w8"], "answer": "w8", "id": "both"},
    {"image": "b.png", "question": "w11 w12 w13 w14", "choices": ["w5", "w6"], "answer": "w6", "skill": "shape"},
    {"question": "w15", "answer": "w9", "skill": "words"},
    {"question": "w15 w16", "answers": ["w9", "w10"], "metric": "exact", "skill": "words"},
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders native, text, paligemma and fused (with a card and fuse.json), and data files; never changed."""
    where = tmp_path_factory.mktemp("shelf")
    for name, kind, seed in (("native", "llava", 1), ("other", "llava_next", 2), ("paligemma", "paligemma", 1)):
        tiny_processors.save(own(kind, seed)[0], where / name)
    save_member(tiny_text.build("llama"), where / "text")
    (where / "recipe.yaml").write_text(
        f"members: {{a: {where}/native, b: {where}/other}}\n"
        "language: {method: linear, weights: 0.5}\nvision: [a, b]\n"
    )
    assert fuse_here("merge", where / "recipe.yaml", where / "fused").code == 0
    for name, size, seed in (("a", (60, 40), 1), ("b", (30, 50), 2)):
        picture(size, seed).save(where / f"{name}.png")
    write(where / "data.jsonl", LINES)
    write(where / "words.jsonl", [line for line in LINES if "image" not in line])
    return where


@pytest.fixture
def place(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shelf to work in."""
    shutil.copytree(shelf, tmp_path / "shelf")
    monkeypatch.chdir(tmp_path / "shelf")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("fuse.progress.SECONDS_APART", 1e9)
    return tmp_path / "shelf"


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def logged(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


ASKED = ("eval", "native", "fused", "--data", "data.jsonl", "--max-tokens", "6")


def test_native_and_fused_folders_in_one_table(place: Path) -> None:
    ran = fuse_here(*ASKED, "--out", "out", "--loss", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found == json.loads((place / "out/results.json").read_text())
    assert found["table"]["folders"] == ["native", "fused"]
    assert [row["name"] for row in found["table"]["rows"]] == [
        "colour", "all", "shape", "words", "mean of skills", "mean of questions",
    ]  # fmt: skip
    assert [row["n"] for row in found["table"]["rows"]] == [2, 1, 1, 2, 6, 6]
    assert found["options"] == {"max_tokens": 6, "loss": True, "norm": "token"}
    assert all(
        skill["loss"] > 0 and skill["entropy"] >= 0 for one in found["folders"] for skill in one["skills"].values()
    )
    # the replies are those of `fuse ask`
    for name in ("native", "fused"):
        first, *replies = logged(place / f"out/{name}.jsonl")
        assert first["fuse eval"] == 1
        said = {row["key"]: row["text"] for row in replies}
        answerer = load(place / name)
        for number in (1, 2, 5, 6):
            line = LINES[number - 1]
            images = (place / line["image"],) if "image" in line else ()
            assert said[str(number)] == ask(answerer, line["question"], images=images, max_tokens=6)
        assert said["both"] in LINES[2]["choices"] and said["4"] in LINES[3]["choices"]
    lines = ran.err.splitlines()
    assert [line.rsplit(",", 1)[0] for line in lines] == ["native: 6 questions", "fused: 6 questions"]
    table = (place / "out/table.md").read_text()
    assert "| skill | metric | n | native | fused | fused - native |" in table
    # only what fuse made gets a new card
    assert not (place / "native/README.md").exists()
    card = (place / "fused/README.md").read_text()
    assert card.count("<!-- fuse eval: begin -->") == 1
    assert table.strip() in card
    assert "Data: `data.jsonl`, 6 questions, sha256 `" in card


def test_a_text_folder_and_the_table_on_the_terminal(place: Path) -> None:
    ran = fuse_here("eval", "text", "--data", "words.jsonl", "--max-tokens", "4", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert "Scores times 100, with 95% intervals from 10,000 resamples of the questions (seed 0)." in " ".join(
        ran.out.split()
    )
    assert ran.out.split("words")[1].split()[:4] == ["exact", "2", "text", "0.0"]
    assert not (place / "text/README.md").exists()


def test_cards_by_choice(place: Path) -> None:
    before = (place / "fused/README.md").read_bytes()
    assert fuse_here(*ASKED, "--no-card", "--quiet").code == 0
    assert (place / "fused/README.md").read_bytes() == before
    assert fuse_here(*ASKED, "--card", "--quiet").code == 0
    assert "<!-- fuse eval: begin -->" in (place / "native/README.md").read_text()
    (place / "native/README.md").unlink()
    (place / "native/README.md").symlink_to(place / "fused/README.md")
    ran = fuse_here(*ASKED, "--card")
    told = "fuse: native/README.md: is a link; the table would change what it leads to (--no-card leaves it alone)\n"
    assert (ran.code, ran.err) == (2, told)


def test_what_a_kill_left_is_gone_on_with(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuse_here(*ASKED, "--out", "whole").code == 0
    shutil.copytree(place / "whole", place / "out")
    log = place / "out/native.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:4]) + lines[4][:20])  # three replies, and one that was being written
    (place / "out/fused.jsonl").unlink()
    asked = watched(monkeypatch)
    ran = fuse_here(*ASKED, "--out", "out")
    assert ran.code == 0
    assert [line.rsplit(",", 1)[0] for line in ran.err.splitlines()] == [
        "native: 6 questions, 3 of them before", "fused: 6 questions",
    ]  # fmt: skip
    done = {row["key"] for row in logged(place / "whole/native.jsonl")[1:4]}
    assert not done & set(asked[:3]) and len(asked) == 3 + 6
    for name in ("native", "fused"):
        rows = {row["key"]: row["text"] for row in logged(place / f"out/{name}.jsonl")[1:]}
        assert rows == {row["key"]: row["text"] for row in logged(place / f"whole/{name}.jsonl")[1:]}
    assert (
        json.loads((place / "out/results.json").read_text())["table"]
        == (json.loads((place / "whole/results.json").read_text())["table"])
    )
    asked.clear()
    assert fuse_here(*ASKED, "--out", "out", "--seed", "1", "--batch-size", "2").code == 0
    assert asked == []  # neither changes a reply
    assert fuse_here(*ASKED, "--out", "out", "--fresh").code == 0
    assert len(asked) == 12


def watched(monkeypatch: pytest.MonkeyPatch, stop: Callable[[list[str]], bool] = lambda _: False) -> list[str]:
    """The keys of the questions that are asked from now on; Ctrl-C before a batch when `stop` says so."""
    import fuse.evaluate.answering as module

    asked: list[str] = []
    real = module.reply

    def reply(answerer: Any, batch: Any, **how: Any) -> Any:
        if stop(asked):
            raise KeyboardInterrupt
        asked.extend(question.key for question in batch.questions)
        return real(answerer, batch, **how)

    monkeypatch.setattr(module, "reply", reply)
    return asked


def test_ctrl_c_keeps_what_is_done(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        asked = watched(patch, lambda asked: len(asked) >= 2)
        ran = fuse_here(*ASKED, "--out", "out", "--batch-size", "1")
        assert (ran.code, ran.out) == (130, "")
        told = "interrupted; 2 of 6 answers of native are in out/native.jsonl; the same command goes on from there"
        assert ran.err == f"fuse: {told}\n"
        assert [row["key"] for row in logged(place / "out/native.jsonl")[1:]] == asked[:2]
        asked.clear()
        ran = fuse_here(*ASKED, "--batch-size", "1")
    assert (ran.code, ran.out) == (130, "")
    assert ran.err == (
        "fuse: interrupted; nothing is kept (with --out DIR answers are, and the same command goes on from there)\n"
    )
    assert not (place / "out/results.json").exists()
    ran = fuse_here(*ASKED, "--out", "out")
    assert ran.code == 0
    assert ran.err.startswith("native: 6 questions, 2 of them before, ")


def test_a_log_of_something_else_is_refused(place: Path) -> None:
    once = ("eval", "text", "--data", "words.jsonl", "--max-tokens", "4", "--out", "out", "--quiet")
    assert fuse_here(*once).code == 0
    before = (place / "out/text.jsonl").read_bytes()
    afresh = "(--fresh starts afresh, another --out keeps both)"

    def refused(told: str, *changed: str) -> None:
        ran = fuse_here(*once, *changed)
        assert (ran.code, ran.out, ran.err) == (2, "", f"fuse: out/text.jsonl{told} {afresh}\n")
        assert (place / "out/text.jsonl").read_bytes() == before

    refused(": was begun with max_tokens 4, not 5", "--max-tokens", "5")
    refused(": was begun with loss off, not on", "--loss")
    refused(": was begun with norm token, not sum", "--norm", "sum")
    weights = place / "text/model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    refused(": was begun with another model: its model.safetensors was different")
    weights.write_bytes(kept)
    (place / "text/chat_template.jinja").write_text("{{ messages[0].content }}")
    refused(": was begun with another model: it had no chat_template.jinja")
    (place / "text/chat_template.jinja").unlink()
    (place / "text/README.md").write_text("# not part of the model")
    assert fuse_here(*once).code == 0
    (place / "out/text.jsonl").write_bytes(before + b'{"key": "1", "text": 3}\n')
    ran = fuse_here(*once)
    assert ran.err == f"fuse: out/text.jsonl:4: is not a reply: key, text, entropy and loss {afresh}\n"
    (place / "out/text.jsonl").write_bytes(before + before.splitlines(keepends=True)[1])
    ran = fuse_here(*once)
    assert ran.err == f"fuse: out/text.jsonl:4: id '1' is not a question still open {afresh}\n"
    (place / "out/text.jsonl").write_text("hello\n")
    ran = fuse_here(*once)
    assert ran.err == f"fuse: out/text.jsonl:1: not JSON: Expecting value {afresh}\n"
    assert fuse_here(*once, "--fresh").code == 0
    assert (place / "out/text.jsonl").read_bytes() == before


def test_other_data_and_other_images_are_told(place: Path) -> None:
    write(place / "one.jsonl", LINES[:1])
    once = ("eval", "native", "--data", "one.jsonl", "--max-tokens", "2", "--out", "out", "--quiet")
    assert fuse_here(*once).code == 0
    picture((60, 40), 9).save(place / "a.png")
    ran = fuse_here(*once)
    afresh = "(--fresh starts afresh, another --out keeps both)"
    assert (ran.code, ran.err) == (2, f"fuse: out/native.jsonl: was begun with other images {afresh}\n")
    write(place / "one.jsonl", LINES[1:2])
    ran = fuse_here(*once)
    assert (ran.code, ran.err) == (2, f"fuse: out/native.jsonl: was begun with another data file {afresh}\n")


REFUSED = [
    (("native", "nowhere"), "nowhere: there is no such folder"),
    (("native", "recipe.yaml"), "recipe.yaml: is a recipe (merge it first)"),
    (("native", "native"), "native: is named twice"),
    (("native", "./native/../native"), "native/../native: is the same folder as native"),
    (("native", "text"), "data.jsonl:1: asks about an image, and text has no image processor"),
    (("native", "paligemma"), "data.jsonl:5: has no image, and paligemma (paligemma) answers only about images"),
    (("native", "--fresh"), "--fresh begins the logs of --out anew (give --out, or leave --fresh out)"),
    (("native", "--out", "a.png"), "a.png: --out exists and is not a folder"),
    (("native", "--out", "native"), "native: --out is one of the folders that are asked (name another)"),
    (("native", "--metric", "vqa"), "data.jsonl:3: metric 'vqa' does not look at choices (leave one of them out)"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_refused_before_a_model_is_loaded(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(shelf)
    monkeypatch.setattr("fuse.ask.load", unreachable)
    ran = fuse_here("eval", *given, "--data", "data.jsonl")
    assert (ran.code, ran.out, ran.err) == (2, "", f"fuse: {told}\n")


def test_data_and_images_are_checked_before_a_model_is_loaded(shelf: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("fuse.ask.load", unreachable)
    data = tmp_path / "data.jsonl"
    write(data, [{"question": "w5", "answr": "w6"}])
    ran = fuse_here("eval", shelf / "native", "--data", data)
    assert (ran.code, ran.err) == (2, f"fuse: {data}:1: unknown key 'answr' (did you mean: answer, answers)\n")
    write(data, [{"question": "w5", "answer": "w6", "image": "no.png"}])
    ran = fuse_here("eval", shelf / "native", "--data", data)
    told = f"fuse: {data}:1: image {tmp_path / 'no.png'}: there is no such file\n"
    assert (ran.code, ran.err) == (2, told)


def unreachable(*_: Any, **__: Any) -> None:
    raise AssertionError("a model is loaded")


def test_progress_outside_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fuse import progress

    times = iter([0.0, 3.0, 4.0, 4.5])  # begun, and at each batch that reaches another tenth
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with progress.count_progress(2000, "x", "questions", shown=True, done=900) as advance:
        for count in (50, 150, 100, 800):
            advance(count)
    assert capsys.readouterr().err == "x: 1,100 of 2,000 questions, 14 s left\n"
    with progress.count_progress(10, "x", "questions", shown=False) as advance:
        advance(5)
    assert capsys.readouterr().err == ""


def test_labels_tell_folders_apart() -> None:
    folders = [Path("/x/a/out"), Path("/x/b/out"), Path("/x/c"), Path("/y/a/out")]
    assert labels(folders) == ["x/a/out", "b/out", "c", "y/a/out"]
    assert labels([Path("/out"), Path("/b/out")]) == ["/out", "b/out"]
    assert stems(["x/a", "x-a", "b c", "/"]) == ["x-a", "x-a-2", "b-c", "folder"]
