"""docs/demo.svg: what it tells is what `make demo` asks and what docs/evidence.md measured; a drawing is well-formed."""

import re
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests import zoo_tools  # noqa: F401 - the path of the tools

import demo  # isort: skip
import demo_picture  # isort: skip
from zoo_world import new_scene  # isort: skip

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> list[str]:
    """Every text of a drawing, in order."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def told() -> list[str]:
    return words((ROOT / "docs" / "demo.svg").read_text())


def test_it_asks_what_the_demo_asks(told: list[str]) -> None:
    for question, right, needs in demo.asked(new_scene(Random("demo"), 4, 4)):
        line = told[told.index(question) + 1 :][:3]
        assert line[2] == f"✓ {right}"
        assert [answer == f"✓ {right}" for answer in line[:2]] == [needs in (name, "either") for name in demo.PARENTS]


def test_its_scores_are_those_of_the_evidence(told: list[str]) -> None:
    text = (ROOT / "docs" / "evidence.md").read_text()
    for label, name in (("hue", "hue"), ("form", "form"), ("VisionFuse", "fused")):
        row = re.search(rf"^\| {label} \|(.*)\|$", text, re.MULTILINE)
        assert row
        cells = [cell.strip() for cell in row[1].split("|")]
        shown = [told[place + 1] for place, word in enumerate(told) if word == name][1:]  # behind the table's head
        assert shown == [cells[6], cells[5]]  # all, color+shape


def test_the_picture_is_the_one_that_pages_ask_about(tmp_path: Path) -> None:
    _, seen = demo.drawn(tmp_path / "picture.png")
    with Image.open(ROOT / "docs" / "scene.png") as shown:
        assert np.abs(np.asarray(shown, dtype=int) - np.asarray(seen, dtype=int)).mean() < 1  # Pillow may round anew


def test_a_drawing() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 1] = 255, 0, 0
    shown = demo_picture.Shown(
        pictures={"the picture": pixels, "as a": pixels, "as b": pixels},
        models=("hue", "form", "fused"),
        answers=[("is 1 < 2 ?", "yes", ("yes", "no", "yes"))],
        scores={"all": {"hue": 50.0, "form": 0.0, "fused": 100.0}},
    )
    svg = demo_picture.svg(shown)
    assert words(svg)[-10:] == ["✓ yes", "✗ no", "✓ yes", "all", "hue", "50", "form", "0", "fused", "100"]
    assert '<path fill="#ff0000" d="M1 0h1v1h-1z"/>' in svg
    assert svg.count('class="best"') == 1
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
