"""`fuse search` as a user runs it, on members so small that what is best is known: the questions' answers are member a's."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fuse.ask import ask_many, load
from fuse.cli import VERBS
from fuse.commands.search import METHODS, OBJECTIVES
from fuse.recipe_yaml import load_recipe
from fuse.search import objective as objectives
from fuse.search import run as running
from tests import tiny_text
from tests.cli import Ran, fuse_here
from tests.members import perturbed, save_member

RECIPE = "# mine\nmembers: {a: a, b: b}\nlanguage: {method: linear, weights: {a: 0.5, b: 0.5}}  # both alike\n"
QUESTIONS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, and questions whose answers are what a says."""
    folder = tmp_path_factory.mktemp("search")
    base = tiny_text.build("llama")
    for seed, name in enumerate("ab"):
        save_member(perturbed(base, seed + 1, 0.3), folder / name)
    (folder / "recipe.yaml").write_text(RECIPE)
    asked = [f"w{5 + 3 * i} w{40 - i} w{7 + i}" for i in range(QUESTIONS)]
    answers = ask_many(load(folder / "a"), asked, max_tokens=3)
    rows = [{"question": q, "answer": a or "w3", "skill": "even" if i % 2 else "odd"} for i, (q, a) in
            enumerate(zip(asked, answers, strict=True))]  # fmt: skip
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, which costs more than a search so small; other tests look at plots."""
    monkeypatch.setattr("fuse.search.plot.plot", lambda *_: b"\x89PNG")


def search(folder: Path, out: Path, *args: object, recipe: str = "recipe.yaml", data: str = "q.jsonl") -> Ran:
    return fuse_here(
        "search", folder / recipe, "--data", folder / data, "--out", out, "--max-tokens", 3, *args
    )  # fmt: skip


def document(out: Path) -> dict[str, Any]:
    return json.loads((out / "search.json").read_text())


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


def test_the_command_knows_what_there_is() -> None:
    assert "search" in VERBS
    assert METHODS == running.METHODS
    assert tuple(objectives.OBJECTIVES) == OBJECTIVES


@pytest.mark.parametrize("method", METHODS)
def test_the_best_recipe_is_found_and_runs(folder: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "out"
    found = search(folder, out, "--method", method, "--over", "language.weights.b=0..1", "--sum", "language.weights=1")
    assert found.code == 0, found.err
    told = document(out)
    assert told["ended"] == ("budget" if method == "bayes" else "done")
    start, best = told["start"], told["best"]
    assert start["score"] < 0.5
    assert best["score"] > 0.8
    assert best["score"] == 1.0 or method == "bayes"  # at an end of the range, which a random point does not meet
    assert best["point"]["language.weights.b"] < 0.05
    left = best["recipe values"]
    assert left["language.weights.a"] == pytest.approx(1 - left["language.weights.b"])
    rows = {row["name"]: row for row in told["tuning"]["table"]["rows"]}
    assert rows["mean of skills"]["scores"][1]["score"] == best["score"]
    assert rows["mean of skills"]["n"] == told["tuning"]["questions"] == 8
    testing = told["testing"]
    assert (testing["questions"], testing["recipes that answered them"]) == (4, 2)
    assert [row["n"] for row in testing["table"]["rows"]] == [2, 2, 4, 4]
    text = (out / "best.yaml").read_text()
    assert text.startswith("# found by fuse search --objective score on 8 questions: trial ")
    assert "# both alike" in text
    made = load_recipe(out / "best.yaml").recipe.language.weights
    assert made == {"a": left["language.weights.a"], "b": left["language.weights.b"]}
    merged = fuse_here("merge", out / "best.yaml", tmp_path / "merged")
    assert merged.code == 0, merged.err
    table = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert len(table) == told["trials"] + 1 == len(lines(out)) - 3
    assert float(table[best["trial"]]["language.weights.b"]) == best["point"]["language.weights.b"]
    for row in table:
        skills = [float(value) for name, value in row.items() if name.startswith("score of ")]
        assert len(skills) == 2
        assert sum(skills) / 2 == pytest.approx(float(row["score"]))
    with Image.open(out / "plot.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("L").getcolors(1 << 24) or []) > 10
    last = found.out.splitlines()[-1]
    assert last.startswith(f"best of {told['trials']} trials: {best['trial']}, language.weights.b = ")
    assert "\n tuning " in found.out and "\n testing " in found.out
    assert re.search(r"mean of skills +8 +0\.0 +\d+\.\d +\+\d", found.out)
    assert f"trial {told['trials']}/30: language.weights.b " in found.err


@pytest.mark.usefixtures("unplotted")
def test_best_scores_are_those_of_its_merged_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    over = ("--over", "language.weights.b=0.25,0.9", "--sum", "language.weights=1", "--holdout", 0)
    assert search(folder, out, "--method", "grid", "--objective", "loss", *over).code == 0
    assert fuse_here("merge", out / "best.yaml", tmp_path / "merged").code == 0
    rows = [json.loads(line) for line in (folder / "q.jsonl").read_text().splitlines()]
    said = ask_many(load(tmp_path / "merged"), [row["question"] for row in rows], max_tokens=3)
    best = document(out)["best"]
    assert tuple(said) == tuple(lines(out)[1 + best["trial"]]["answers"])
    assert best["score"] == pytest.approx(
        sum(a == row["answer"] for a, row in zip(said, rows, strict=True)) / len(rows)
    )


@pytest.mark.usefixtures("unplotted")
def test_it_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    how = ("--method", "bayes", "--over", "language.weights.b=0..1", "--seed", 3, "--quiet")
    assert search(folder, whole, *how, "--budget", 7).code == 0
    assert search(folder, parts, *how, "--budget", 3).code == 0
    before = (parts / "trials.jsonl").read_bytes()
    with (parts / "trials.jsonl").open("ab") as file:
        file.write(b'{"trial": 4, "poi')  # killed while it wrote
    again = search(folder, parts, *how, "--budget", 7)
    assert (again.code, again.err) == (0, "")
    assert (parts / "trials.jsonl").read_bytes().startswith(before)

    def points(out: Path) -> list[Any]:
        return [line["point"] for line in lines(out)[1:] if line.get("part") == "tuning"]

    assert points(whole) == points(parts)
    assert document(whole)["best"] == document(parts)["best"]
    if (looks := document(parts)["testing"]["recipes that answered them"]) > 2:
        assert f"the testing questions were answered by {looks} recipes: the search went on after a test" in again.out
    finished = (parts / "trials.jsonl").read_bytes()
    assert search(folder, parts, *how, "--budget", 7).code == 0
    assert (parts / "trials.jsonl").read_bytes() == finished


@pytest.mark.usefixtures("unplotted")
def test_another_search_does_not_go_into_its_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    how = ("--method", "grid", "--over", "language.weights.b=0,1", "--quiet")
    assert search(folder, out, *how).code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    other = search(folder, out, "--method", "coordinate", "--over", "language.weights.b=0,1", "--seed", 2, "--quiet")
    assert other.code == 2
    assert other.err == (
        f"fuse: {out}: holds another search: method is grid there and coordinate here; seed is 0 there and 2 here "
        "(name another folder, or search as then)\n"
    )
    (folder / "recipe2.yaml").write_text(RECIPE.replace("0.5", "0.4"))
    other = search(folder, out, *how, recipe="recipe2.yaml")
    assert other.err == (
        f"fuse: {out}: holds another search: recipe is not the same (name another folder, or search as then)\n"
    )
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}


def test_other_members_and_other_images_are_another_search(folder: Path, tmp_path: Path) -> None:
    """What `fuse merge` would read is the same but for a small file, or but for one value amid the weights."""
    from fuse.search.run import Options, read_search

    def identity() -> dict[str, Any]:
        data = place / "seen.jsonl"
        return dict(read_search(place / "recipe.yaml", data, tmp_path / "out", Options(holdout=0)).identity)

    place = shutil.copytree(folder, tmp_path / "place")
    (place / "seen.jsonl").write_text('{"question": "w5", "answer": "w6", "image": "seen.png"}\n')
    Image.new("RGB", (4, 4)).save(place / "seen.png")
    before = identity()
    assert identity() == before
    Image.new("RGB", (4, 4), (0, 0, 1)).save(place / "seen.png")
    assert {key for key, value in identity().items() if value != before[key]} == {"images"}
    before = identity()
    weights = bytearray((place / "b" / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (place / "b" / "model.safetensors").write_bytes(weights)
    assert {key for key, value in identity().items() if value != before[key]} == {"members"}
    before = identity()
    config = place / "b" / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    assert {key for key, value in identity().items() if value != before[key]} == {"members"}


def test_a_folder_of_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for name, said in (
        ("full", "is not empty and holds no search (name another folder)"),
        ("file", "is not a folder (name a folder to make)"),
        ("no/where", f"the folder '{tmp_path}/no' does not exist (make it first)"),
    ):
        found = search(folder, tmp_path / name, "--budget", 1)
        assert (found.code, found.err) == (2, f"fuse: {tmp_path / name}: {said}\n")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "notes.txt"]


@pytest.mark.usefixtures("unplotted")
def test_a_broken_log_is_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    how = ("--method", "grid", "--over", "language.weights.b=0,1", "--quiet")
    assert search(folder, out, *how).code == 0
    text = (out / "trials.jsonl").read_text().splitlines()
    for line, said in (("{", "not JSON"), ('{"point": [1]}', "is not a trial of a search"), ("", "the file is empty")):
        (out / "trials.jsonl").write_text("\n".join([text[0], text[1], line, text[2]]) + "\n")
        found = search(folder, out, *how)
        assert found.code == 3
        assert found.err.startswith(f"fuse: {out}/trials.jsonl:3") and said in found.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--over", "language.wieghts.b=0..1"], "with language.wieghts.b = 0.0: language.wieghts: unknown key (did you mean: weights)"),
        (["--over", "language.weights.c=0..1"], "language.weights.c: is not a member (known: a, b)"),
        (["--over", "language.t=0..1"], "with language.t = 0.0: language.t: linear has no t (it takes: weights, normalize)"),
        (["--over", "language.weights.b=a,c"], "with language.weights.b = 'a': language.weights.b: should be a valid number, not 'a'"),
        (["--over", "language.weights.b=1..0"], "language.weights.b: the range 1..0 is upside down (0..1)"),
        (["--method", "grid", "--steps", "9"], "the grid has 81 points and the budget is 30 (--budget 81, fewer values or --steps, or another --method)"),
        (["--holdout", "0.01"], "--holdout 0.01 of 12 questions leaves none for testing (more questions, --test FILE, or --holdout 0 for no test)"),
        (["--holdout", "0.5", "--test", "q.jsonl"], "--test and --holdout are two ways to test (leave one of them out)"),
        (["--objective", "stability", "--method", "bayes"], "--objective stability compares neighbours, and --method bayes has none (--method grid or coordinate)"),
    ],
)  # fmt: skip
def test_one_sentence_and_nothing_written(folder: Path, tmp_path: Path, args: list[str], said: str) -> None:
    found = search(folder, tmp_path / "out", *args)
    assert found.code == 2
    assert said in found.err and found.err.count("\n") == 1, found.err
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_mergekit_is_not_searched(folder: Path, tmp_path: Path) -> None:
    models = "".join(f"  - {{model: {folder}/{name}, parameters: {{weight: 0.5}}}}\n" for name in "ab")
    (tmp_path / "mk.yml").write_text(f"merge_method: linear\nmodels:\n{models}dtype: float32\n")
    ran = search(folder, tmp_path / "out", "--over", "language.weights.a=0..1", recipe=str(tmp_path / "mk.yml"))
    said = (
        f"fuse: {tmp_path}/mk.yml: this is a recipe of mergekit, and a search changes settings by fuse's names "
        "(write it with members and language)\n"
    )
    assert (ran.code, ran.out, ran.err) == (2, "", said) and not (tmp_path / "out").exists()


def test_points_that_the_recipe_refuses_are_passed_over(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = search(folder, out, "--method", "grid", "--steps", 3, "--holdout", 0)  # (0, 0) has no mean
    assert found.code == 0, found.err
    told = document(out)
    assert (told["trials"], told["refused"]) == (8, 1)  # (0.5, 0.5) is the recipe as it stands
    refused = [line for line in lines(out) if "refused" in line]
    assert refused[0]["point"] == [0.0, 0.0]
    assert "the weights sum to zero, so normalize cannot divide by their sum" in refused[0]["refused"]
    assert "no questions were kept for testing, so the figures of the best recipe are too good" in found.out
    assert told["testing"]["table"] is None


def test_a_model_that_says_nothing_finite_is_passed_over(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "recipe.yaml").write_text(
        f"members: {{a: {folder}/a, b: {folder}/b}}\nlanguage: {{method: linear, normalize: false, weights: 0.5}}\n"
    )
    over = ("--over", "language.weights.b=0,1e15", "--method", "grid", "--holdout", 0)
    found = search(folder, out, *over, recipe=str(tmp_path / "recipe.yaml"))
    assert found.code == 0, found.err
    told = document(out)
    assert (told["trials"], told["refused"]) == (2, 1)
    assert [line.get("refused") for line in lines(out)[1:]] == [
        None, None, "its next-token distributions are not finite"
    ]  # fmt: skip


def test_a_map_of_nothing_yet_is_drawn(folder: Path, tmp_path: Path) -> None:
    """Stopped after the recipe as it stands, which is no point of the space."""
    from fuse.search.plot import plot
    from fuse.search.run import Options, read_search
    from fuse.search.trials import Log, Trial

    over = ("language.weights.a=0,1", "language.weights.b=0,1")
    out = tmp_path / "out"
    made = read_search(folder / "recipe.yaml", folder / "q.jsonl", out, Options(over=over, method="grid"))
    log, first = Log(out, made.identity), Trial(0, None, score=0.5, loss=1.0, entropy=0.1)
    log.add(first)
    assert plot(made, log, first, {}).startswith(b"\x89PNG")


def test_captions_have_a_scale_of_their_own(folder: Path, tmp_path: Path) -> None:
    rows = [{"question": "w5", "answer": "w6"}]
    rows += [{"question": f"w{i}", "answer": "w6 w7", "metric": "cider", "skill": "captions"} for i in (8, 9)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = ("--over", "language.weights.b=0,1", "--method", "grid", "--holdout", 0)
    found = search(folder, tmp_path / "out", *how, data=str(data))
    assert (found.code, found.err) == (2, (
        f"fuse: {data}:2: metric 'cider' and that of the questions before have different scales, and --objective score "
        "has no mean of them (--objective loss, or a search for captions alone)\n"
    ))  # fmt: skip
    found = search(folder, tmp_path / "out", *how, "--objective", "loss", data=str(data))
    assert found.code == 0, found.err
    assert "score" not in document(tmp_path / "out")["best"]


def test_without_labels(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    how = ("--over", "language.weights.b=0..1", "--sum", "language.weights=1", "--steps", 6, "--quiet")
    for method in ("grid", "coordinate"):
        if method == "coordinate":
            request.getfixturevalue("unplotted")  # the plots of a grid have both objectives
        for objective in ("entropy", "stability"):
            out = tmp_path / f"{objective}-{method}"
            found = search(folder, out, *how, "--objective", objective, "--method", method)
            assert found.code == 0, found.err
            told = document(out)
            rows = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
            figures = [float(row[told_by(objective)]) for row in rows if row[told_by(objective)]]
            assert told["best"][told_by(objective)] == pytest.approx(min(figures))
            if objective == "stability":
                assert told["best"]["point"]["language.weights.b"] not in (0.0, 1.0)
            assert told["tuning"]["table"] and told["testing"]["table"]  # the answers were there to compare with


def test_questions_without_answers(folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"w{i} w{i + 9}"} for i in range(3, 8)] + [{"question": "w4 w9", "choices": ["w7", "w8 w9"]}]
    bare, right = tmp_path / "bare.jsonl", tmp_path / "right.jsonl"
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    right.write_text((folder / "q.jsonl").read_text())
    how = ("--over", "language.weights.b=0..1", "--quiet", "--budget", 4)
    for said, args in (
        (f"{bare}:1: answer is missing (answer: text, or answers: a list of texts)", ("--objective", "loss")),
        (f"{bare}: --holdout tests by right answers, and not every question has one (--test FILE with answers, or "
         "--holdout 0)", ("--objective", "entropy", "--holdout", "0.5")),
    ):  # fmt: skip
        found = search(folder, tmp_path / "out", *how, *args, data=str(bare))
        assert (found.code, found.err) == (2, f"fuse: {said}\n")
    found = search(folder, tmp_path / "out", *how, "--objective", "entropy", data=str(bare))
    assert found.code == 0, found.err
    told = document(tmp_path / "out")
    assert told["tuning"] == {"questions": 6, "table": None} and told["testing"]["table"] is None
    assert set(told["best"]) == {"trial", "point", "recipe values", "entropy"}
    assert "best - start" not in found.out
    found = search(folder, tmp_path / "too", *how, "--objective", "stability", "--test", right, data=str(bare))
    assert found.code == 0, found.err
    told = document(tmp_path / "too")
    assert told["tuning"]["table"] is None and told["testing"]["questions"] == QUESTIONS
    assert "testing" in found.out and "tuning" not in found.out


def told_by(objective: str) -> str:
    return "changes" if objective == "stability" else objective


def test_options_bands_and_parts(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    overs = ("language.weights.b@depth:2=0..1", "language.weights.a@parts=0.5,1", "language.normalize=true,false")
    found = search(
        folder, out, *(a for over in overs for a in ("--over", over)), "--steps", 2, "--budget", 6, "--quiet"
    )
    assert found.code == 0, found.err
    told = document(out)
    assert told["ended"] == "budget" and told["trials"] == 6
    values = told["best"]["recipe values"] or {"language.normalize": True}
    assert set(values) <= {"language.weights.a", "language.weights.b", "language.normalize"}
    assert [axis["axis"] for axis in told["space"]] == [
        "language.weights.b[0]", "language.weights.b[1]", "language.weights.a[attention]", "language.weights.a[mlp]",
        "language.weights.a[rest]", "language.normalize",
    ]  # fmt: skip


def test_a_test_file_of_its_own(folder: Path, tmp_path: Path) -> None:
    rows = (folder / "q.jsonl").read_text().splitlines()
    (tmp_path / "tune.jsonl").write_text("\n".join(rows[:6]))
    (tmp_path / "test.jsonl").write_text("\n".join(rows[6:]))
    out = tmp_path / "out"
    ran = fuse_here(
        "search", folder / "recipe.yaml", "--data", tmp_path / "tune.jsonl", "--test", tmp_path / "test.jsonl",
        "--out", out, "--over", "language.weights.b=0,0.5", "--max-tokens", 3, "--json", "--quiet",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert told == document(out)
    assert (told["tuning"]["questions"], told["testing"]["questions"]) == (6, 6)


def test_interrupting_keeps_the_best_so_far(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "fuse", "search", str(folder / "recipe.yaml"), "--data", str(folder / "q.jsonl"),
        "--out", str(out), "--budget", "100000", "--method", "bayes", "--max-tokens", "3",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        until = time.monotonic() + 200
        while time.monotonic() < until and not ((out / "trials.jsonl").exists() and len(lines_so_far(out)) > 4):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    told = document(out)
    last = err.splitlines()[-1]
    count = told["trials"]
    assert last == (
        f"fuse: interrupted after {count} trial{'s' * (count != 1)}; the best so far is {out}/best.yaml, and the same "
        "command goes on"
    )
    assert told["ended"] == "interrupted" and count == len(lines(out)) - 2
    assert load_recipe(out / "best.yaml")
    assert told["testing"]["table"] is None and told["testing"]["recipes that answered them"] == 0


def lines_so_far(out: Path) -> list[str]:
    return (out / "trials.jsonl").read_text().splitlines()
