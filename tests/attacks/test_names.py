"""Names that would drive a terminal, a model card or a page of HTML, and folders whose names are odd all the same."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.attacks.harness import attack, within

# what a folder may be called on Linux
NAMES = {
    "an escape": "\x1b[31mred\x1b[0m",
    "a bell": "a\a",
    "a line that turns": "\u202egnp.exe",
    "a mark up of HTML": "<script>alert(1)<",
    "an image of HTML": "<img src=x onerror=alert(1)>",
    "a cell of a table": "a | b | [x](javascript:alert(1))",
    "backticks": "```\n# evil\n```",
    "a new line": "a\n---\nlicense: mit\n---\n# Approved",
    "rich's markup": "[red]a[/red]",
    "a mark of YAML": "a: &x !!python/name:os.system",
    "letters of two alphabets": "p\u0430ypal",
    "a name in NFD": "e\u0301",
    "a blank at the end": "a ",
    "an option": "--force",
    "a percent sign": "%s%n{0}",
    "a line separator": "a\u2028b",
}
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069]")


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_a_member_of_an_odd_name(name: str, family: Path, tmp_path: Path) -> None:
    odd = NAMES[name]
    shutil.copytree(family / "a", tmp_path / odd)
    shutil.copytree(family / "b", tmp_path / "b")
    recipe = {"members": {"a": odd, "b": "b"}, "language": {"method": "linear", "weights": 0.5}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    shown = attack("plan recipe.yaml", tmp_path)
    assert (shown.code, shown.err) == (0, "") and not UNSEEN.search(shown.out)
    ran = attack("merge recipe.yaml out --quiet", tmp_path)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 2)  # the folder, and the sha256 of its file
    card = (tmp_path / "out" / "README.md").read_text()
    table, _, rest = card.partition("## Recipe")
    rows = table.partition("|---|---|---|---|\n")[2].strip().split("\n")
    assert [row.split(" | ")[0] for row in rows] == ["| a", "| b"], table
    assert not UNSEEN.search(card) and "<" not in re.sub(r"\\<", "", table) and card.count("\n---\n") == 1
    shown_recipe = rest.partition("## Load")[0]
    fence = re.match(r"\n\n(`+)yaml\n", shown_recipe)
    assert fence and shown_recipe.count(f"\n{fence[1]}\n") == 1
    within(ran)


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_a_report_about_an_odd_name(name: str, family: Path, tmp_path: Path) -> None:
    odd = NAMES[name]
    shutil.copytree(family / "a", tmp_path / odd)
    shutil.copytree(family / "b", tmp_path / "b")
    ran = attack(("inspect", "tokens", f"./{odd}", "b", "--report", "report"), tmp_path)
    assert (ran.code, ran.err) == (0, "") and not UNSEEN.search(ran.out)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and not UNSEEN.search(page)
    within(ran)


@pytest.mark.parametrize("name", [name for name, odd in NAMES.items() if "/" not in odd], ids=str)
def test_an_output_of_an_odd_name(name: str, family: Path, tmp_path: Path) -> None:
    recipe = f"members: {{a: {family}/a, b: {family}/b}}\nlanguage: {{method: linear, weights: 0.5}}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    ran = attack(("merge", "recipe.yaml", f"./{NAMES[name]}", "--quiet"), tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["recipe.yaml", NAMES[name]])
    within(ran)
