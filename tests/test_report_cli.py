"""`--report` of `fuse inspect` as a user runs it, on members in folders with names of strangers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import fused_members
from tests.cli import Ran, fuse, fuse_here

NAME = "<script>alert(1)"
KINDS = ("encoders", "deltas", "tokens", "attention", "pairs")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Two members, their base, images and a recipe."""
    folder = tmp_path_factory.mktemp("given")
    fused_members.save("llava", folder / NAME, 1)
    fused_members.save("llava", folder / "b", 2)
    fused_members.save_llm(folder / "base")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(6):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels, "RGB").save(folder / "images" / f"{i}.png")
    members = json.dumps({"a": f"./{NAME}", "b": "./b"})
    (folder / "recipe.yaml").write_text(
        f"base: ./base\nmembers: {members}\nvision: [a]\nlanguage: {{method: ties, weights: 0.5}}\n"
    )
    return folder


def report(given: Path, kind: str, folder: Path, *options: object) -> Ran:
    members = [given / NAME, given / "b"]
    arguments = {
        "encoders": [*members, "--images", given / "images", "--quiet"],
        "deltas": [given / "recipe.yaml", "--quiet"],
        "tokens": members,
        "pairs": [*members, "--base", given / "base", "--quiet"],
        "attention": [*members, "--image", given / "images" / "0.png", "--question", "what?", "--max-tokens", 2],
    }[kind]
    return fuse_here("inspect", kind, *arguments, "--report", folder, *options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_report(given, tmp_path, kind):
    ran = report(given, kind, tmp_path / "r")
    assert (ran.code, ran.err) == (0, ""), ran.err
    assert ran.out.splitlines()[-1] == f"report: {tmp_path / 'r' / 'report.html'}"
    text = (tmp_path / "r" / "report.html").read_text()
    assert text.startswith("<!doctype html>") and "<script" not in text
    assert ("&lt;script&gt;alert(1)" in text) == (kind != "deltas")
    charts = {file.name for file in (tmp_path / "r").iterdir()} - {"report.html"}
    assert bool(charts) == (kind != "tokens") and all(name in text for name in charts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_beside_json(given, tmp_path, kind):
    ran = report(given, kind, tmp_path / "r", "--json")
    assert ran.code == 0 and json.loads(ran.out)["inspect"] == kind
    assert (tmp_path / "r" / "report.html").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_s_folder_is_refused_before_the_work(given, kind):
    ran = report(given, kind, given)
    told = f"fuse: {given}: is not empty, and no report of fuse inspect (name another folder)\n"
    assert (ran.code, ran.out, ran.err) == (2, "", told)


def test_the_picture_of_attention_may_lie_in_the_report_s_folder(given, tmp_path):
    for _ in range(2):
        ran = report(given, "attention", tmp_path / "r", "--out", tmp_path / "r")
        assert ran.code == 0, ran.err
    assert {"attention.png", "01-attention.png", "02-attention.png", "report.html"} == {
        file.name for file in (tmp_path / "r").iterdir()
    }


def test_help_imports_no_torch():
    for kind in KINDS:
        ran = fuse("inspect", kind, "--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
        assert ran.code == 0 and "--report DIR" in ran.out
        assert " torch\n" not in ran.err and " matplotlib\n" not in ran.err and " jinja2\n" not in ran.err
