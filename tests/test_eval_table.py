"""The table of an evaluation: rows, JSON, Markdown, terminal, and its place in a model card."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fuse.errors import MachineError, RecipeError
from fuse.evaluate import bootstrap, card_table
from fuse.evaluate.questions import Question
from fuse.evaluate.table import Estimate, Result, tabulate, to_json, to_markdown, to_rich

FAST: dict[str, Any] = {"resamples": 400}


def asked(*skills: str, metric: str = "exact") -> list[Question]:
    return [Question(i, str(i), "?", (), ("x",), (), skill, metric) for i, skill in enumerate(skills, 1)]


QUESTIONS = asked(*["shape"] * 6, *["colour"] * 3)
PARENT = np.array([1, 0, 0, 0, 1, 0, 1, 1, 0.5])
FUSED = np.array([1, 1, 0, 1, 1, 0, 1, 0, 1.0])


def test_rows() -> None:
    table = tabulate(QUESTIONS, [Result("parent", PARENT), Result("fused", FUSED)], seed=3, **FAST)
    shape, colour, of_skills, of_questions = table.rows
    assert [(row.kind, row.name, row.metrics, row.n) for row in table.rows] == [
        ("skill", "shape", ("exact",), 6),
        ("skill", "colour", ("exact",), 3),
        ("mean of skills", "mean of skills", ("exact",), 9),
        ("mean of questions", "mean of questions", ("exact",), 9),
    ]
    assert [[one.score for one in row.scores] for row in table.rows] == [
        pytest.approx([2 / 6, 4 / 6]), pytest.approx([2.5 / 3, 2 / 3]),
        pytest.approx([(2 / 6 + 2.5 / 3) / 2, 2 / 3]), pytest.approx([4.5 / 9, 6 / 9]),
    ]  # fmt: skip
    assert [row.differences[0].score for row in table.rows] == pytest.approx([2 / 6, -0.5 / 3, 0.5 / 6, 1.5 / 9])
    settings: dict[str, Any] = {"seed": 3, **FAST}
    groups = np.repeat([0, 1], [6, 3])
    assert shape.scores[1] == Estimate(4 / 6, *bootstrap.interval(FUSED[:6], **settings))
    assert colour.differences == (Estimate(*bootstrap.paired(PARENT[6:], FUSED[6:], **settings)),)
    assert of_skills.differences == (Estimate(*bootstrap.paired(PARENT, FUSED, groups=groups, **settings)),)
    assert of_questions.scores[0] == Estimate(4.5 / 9, *bootstrap.interval(PARENT, **settings))


def test_one_skill_is_its_own_mean() -> None:
    table = tabulate(QUESTIONS[:6], [Result("a", PARENT[:6])], **FAST)
    assert [row.name for row in table.rows] == ["shape"] and table.rows[0].differences == ()


def test_one_question_has_no_interval() -> None:
    table = tabulate(QUESTIONS[5:7], [Result("a", PARENT[5:7]), Result("b", FUSED[5:7])], **FAST)
    assert table.rows[0].scores == (Estimate(0, None, None), Estimate(0, None, None))
    assert to_json(table)["rows"][0]["differences"] == [{"score": 0.0, "low": None, "high": None}]
    assert to_markdown(table).splitlines()[2] == "| shape | exact | 1 | 0.0 | 0.0 | +0.0 |"


def test_captions_have_means_of_their_own() -> None:
    questions = [*QUESTIONS, *asked("near", "near", "far", metric="cider")]
    scores = np.r_[PARENT, 1.2, 0.8, 3]
    rows = tabulate(questions, [Result("a", scores)], **FAST).rows
    assert [(row.name, row.metrics, row.n, pytest.approx(row.scores[0].score)) for row in rows[4:]] == [
        ("mean of skills (accuracy)", ("exact",), 9, (2 / 6 + 2.5 / 3) / 2),
        ("mean of questions (accuracy)", ("exact",), 9, 0.5),
        ("mean of skills (cider)", ("cider",), 3, 2),
        ("mean of questions (cider)", ("cider",), 3, 5 / 3),
    ]
    one = tabulate(questions[:-1], [Result("a", scores[:-1])], **FAST).rows
    assert [row.name for row in one[3:]] == ["mean of skills (accuracy)", "mean of questions (accuracy)"]
    only = tabulate(questions[9:], [Result("a", scores[9:])], **FAST).rows
    assert [row.name for row in only] == ["near", "far", "mean of skills", "mean of questions"]


def test_skills_that_numpy_would_take_for_one() -> None:
    rows = tabulate(asked("a", "a\0"), [Result("m", np.array([0, 1.0]))], **FAST).rows
    assert [(row.n, row.scores[0].score) for row in rows] == [(1, 0), (1, 1), (2, 0.5), (2, 0.5)]
    assert rows[2].scores[0].high == 0.5  # each skill has one question, so nothing varies


def test_json_is_json() -> None:
    table = tabulate(QUESTIONS, [Result("a", PARENT), Result("b", FUSED)], **FAST)
    found = json.loads(json.dumps(to_json(table), allow_nan=False))
    assert {k: found[k] for k in ("level", "resamples", "seed", "folders")} == {
        "level": 0.95, "resamples": 400, "seed": 0, "folders": ["a", "b"],
    }  # fmt: skip
    row = found["rows"][2]
    assert (row["kind"], row["name"], row["metrics"], row["n"]) == ("mean of skills", "mean of skills", ["exact"], 9)
    assert row["scores"][1]["score"] == pytest.approx(2 / 3)
    assert row["differences"][0]["low"] <= row["differences"][0]["score"] <= row["differences"][0]["high"]


def constant(value: float, count: int = 2) -> np.ndarray:
    return np.full(count, value)


def test_markdown() -> None:
    questions = asked("left|right", "left|right")
    table = tabulate(questions, [Result("a*b", constant(0.5)), Result("c", constant(0.4996))])
    assert to_markdown(table) == (
        "| skill | metric | n | a\\*b | c | c - a\\*b |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| left\\|right | exact | 2 | 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] | +0.0 [+0.0, +0.0] |\n\n"
        "Scores times 100, with 95% intervals from 10,000 resamples of the questions (seed 0). "
        "Differences are to a\\*b, at the same questions.\n"
    )


def test_terminal() -> None:
    skills = asked("red [bold]", "red [bold]", "two\n\x1b[31mlines", "two\n\x1b[31mlines")
    table = tabulate(skills, [Result("mgm", constant(0.25, 4)), Result("fused", constant(1.0, 4))], **FAST)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(to_rich(table))
    lines = [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]
    assert lines[2:6] == [
        "red [bold] exact 2 mgm 25.0 [25.0, 25.0]", "fused 100.0 [100.0, 100.0] +75.0 [+75.0, +75.0]",
        "two \\x1b[31mlines exact 2 mgm 25.0 [25.0, 25.0]", "fused 100.0 [100.0, 100.0] +75.0 [+75.0, +75.0]",
    ]  # fmt: skip
    assert " ".join(lines[-2:]) == (
        "Scores times 100, with 95% intervals from 400 resamples of the questions (seed 0). Differences are to mgm, at "
        "the same questions."
    )


def test_terminal_of_one_folder_has_no_differences() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(to_rich(tabulate(QUESTIONS, [Result("a", PARENT)], **FAST)))
    assert "difference" not in capture.get().lower()


BLOCK = f"{card_table.BEGIN}\n## Evaluation\n\n| x |\n{card_table.END}"


def test_a_card_gets_the_table_once(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# Model\n\nWords.\n\n\n")
    card.chmod(0o640)
    card_table.check_card(tmp_path)
    card_table.write_table(tmp_path, "| x |\n")
    assert card.read_text() == f"---\nlicense: mit\n---\n\n# Model\n\nWords.\n\n{BLOCK}\n"
    card.write_text(card.read_text() + "\nAfter.\n")
    card_table.write_table(tmp_path, "| y |\n\n")
    assert card.read_text() == f"---\nlicense: mit\n---\n\n# Model\n\nWords.\n\n{BLOCK.replace('x', 'y')}\n\nAfter.\n"
    assert stat.S_IMODE(card.stat().st_mode) == 0o640 and names(tmp_path) == ["README.md"]


def test_a_folder_without_card_gets_a_small_one(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    card_table.write_table(folder, "| x |")
    assert (folder / "README.md").read_text() == f"# my-model\n\n{BLOCK}\n"
    mode = stat.S_IMODE((folder / "README.md").stat().st_mode)
    (tmp_path / "plain").touch()
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert names(folder) == ["README.md"]


def test_an_empty_card_and_windows_lines(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.touch()
    card_table.write_table(tmp_path, "| x |")
    assert card.read_text() == f"{BLOCK}\n"
    card.write_bytes(b"\xef\xbb\xbf# A\r\n\r\n\xc3\xa9\r\n")
    card_table.write_table(tmp_path, "| x |\n| y |")
    block = BLOCK.replace("| x |", "| x |\n| y |").replace("\n", "\r\n").encode()
    assert card.read_bytes() == b"\xef\xbb\xbf# A\r\n\r\n\xc3\xa9\r\n\r\n" + block + b"\r\n"


def test_the_same_table_leaves_the_file_alone(tmp_path: Path) -> None:
    card_table.write_table(tmp_path, "| x |")
    before = (tmp_path / "README.md").stat()
    card_table.write_table(tmp_path, "| x |")
    after = (tmp_path / "README.md").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def refused(folder: Path, text: str, problem: str) -> None:
    """Both functions refuse the card in the same sentence, and leave it and the folder as they are."""
    before = names(folder)
    for refuse in (card_table.check_card, lambda f: card_table.write_table(f, "| x |")):
        with pytest.raises(RecipeError) as error:
            refuse(folder)
        assert str(error.value) == f"{folder}/README.md: {problem}"
    assert names(folder) == before
    assert not text or (folder / "README.md").read_text(errors="replace") == text


def test_cards_that_are_refused(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    (tmp_path / "blob").write_text("# Theirs\n")
    card.symlink_to(tmp_path / "blob")
    refused(tmp_path, "# Theirs\n", "is a link; the table would change what it leads to (--no-card leaves it alone)")
    card.unlink()
    card.mkdir()
    refused(tmp_path, "", "is not a plain file (--no-card leaves it alone)")
    card.rmdir()
    card.write_bytes(b"# Caf\xe9\n")
    refused(tmp_path, "# Caf\ufffd\n", "not UTF-8 at byte 5 (--no-card leaves it alone)")
    for text in (BLOCK + BLOCK, card_table.BEGIN, card_table.END, f"{card_table.END} {card_table.BEGIN}"):
        card.write_text(text)
        refused(
            tmp_path, text,
            "does not hold '<!-- fuse eval: begin -->' once and '<!-- fuse eval: end -->' once after it "
            "(delete these comments and what lies between them; --no-card leaves it alone)",
        )  # fmt: skip


def test_a_card_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("x" * 101)
    monkeypatch.setattr(card_table, "MAX_BYTES", 100)
    refused(tmp_path, "x" * 101, "is larger than 100 bytes (--no-card leaves it alone)")


def test_a_failed_write_leaves_the_old_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("# A\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card_table.os, "fsync", full)
    with pytest.raises(MachineError) as error:
        card_table.write_table(tmp_path, "| x |")
    assert str(error.value) == (
        f"{tmp_path}/README.md: cannot be written (No space left on device) (--no-card leaves it alone)"
    )
    assert (tmp_path / "README.md").read_text() == "# A\n" and names(tmp_path) == ["README.md"]


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_table.os, "access", lambda *_: False)
    with pytest.raises(MachineError) as error:
        card_table.check_card(tmp_path)
    assert str(error.value) == f"{tmp_path}: may not be written (--no-card leaves it alone)"
