"""The example report under docs is whole, asks no network, and is what the present code draws."""

import re
from pathlib import Path

from fuse.report import html
from tests import report_documents

FOLDER = Path(__file__).parent.parent / "docs" / "inspect_example"
PAGE = (FOLDER / "report.html").read_text()


def test_the_page_needs_nothing_beside_it() -> None:
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b", PAGE)
    assert not re.search(r"""(src|href|action|data)\s*=\s*["']?\s*(https?:|//)|@import|url\(""", PAGE)
    assert "default-src 'none'" in PAGE


def test_the_charts_lie_beside_it() -> None:
    made = html.MADE.search(PAGE)
    assert made is not None
    files = made[1].split()
    assert files and {*files, "report.html"} == {file.name for file in FOLDER.iterdir()}
    assert re.findall(r'<a href="([^"]*)">', PAGE) == files
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_500_000


def test_it_tells_of_both_encoders() -> None:
    assert "dino, lite over 400 images." in PAGE
    assert "<td>dinov2</td>" in PAGE and "<td>tf_efficientnet_lite0</td>" in PAGE


def headings(text: str) -> set[str]:
    return set(re.findall(r"<(?:h1|th scope=\"col\"|figcaption)>([^<.:]*)", text))


def test_the_present_code_draws_it() -> None:
    """The title, columns and captions that a page of two other encoders without projectors has."""
    document = report_documents.encoders()
    members = {name: {**member, "projector": None} for name, member in document["members"].items()}
    pairs = [{**pair, "projector": None} for pair in document["pairs"]]
    page = html.page_of({**document, "members": members, "pairs": pairs, "skipped": []})
    present = headings(html.render(page, [f"{number}.png" for number in range(len(page.charts))]))
    assert len(present) > 10 and present <= headings(PAGE)
    assert re.search(rf"Made by {html.GENERATOR} \d[\w.]*\.<", PAGE)
