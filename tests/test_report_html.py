"""The page of a report: one file, nothing of strangers' that runs, and a folder that fuse made."""

import base64
import re
import sys
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuse.errors import MachineError, RecipeError
from fuse.report import html
from fuse.report.colours import Scale
from fuse.report.page import Heat, Page, Picture, Scatter, Section, Sentence, Table
from tests import report_documents

HOSTILE = '<script>alert("x")</script>'


class Parsed(HTMLParser):
    """Tags with their attributes, in order; HTML's void elements and SVG's closed ones aside, every tag is closed."""

    VOID = frozenset({"meta", "img", "rect", "path", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for one, attributes in self.tags if one == tag]


def test_nothing_runs_and_nothing_is_asked_of_the_network():
    for document in report_documents.every(HOSTILE):
        kind = document["inspect"]
        extra = report_documents.samples(document) if kind == "encoders" else None
        page = html.page_of(document, extra, report_documents.image())
        text = html.render(page, [f"{n:02}-x.png" for n in range(len(page.charts))])
        parsed = Parsed(text)
        assert not parsed.all("script") and not parsed.all("link") and not parsed.all("iframe"), kind
        assert HOSTILE not in text and "&lt;script&gt;alert(&#34;x&#34;)" in text, kind
        for _, attributes in parsed.tags:
            assert not [name for name in attributes if name.startswith("on")]
            source = attributes.get("src") or attributes.get("href") or ""
            assert source == "" or source.startswith("data:image/png;base64,") or re.fullmatch(r"\d\d-x\.png", source)
        assert not re.search(r"https?:|//", re.sub(r"base64,[^\"]*", "", text)), kind
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all("meta")
        assert all(one.get("alt") for one in parsed.all("img"))
        assert all(one.get("aria-label") or one.get("aria-hidden") for one in parsed.all("svg"))
        levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


def small(**more: object) -> Page:
    heat = Heat("heat", "Heat", ["a"], ["b", "c"], [[0.25, None]], Scale(0, 1), "row", "column")
    picture = BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(picture, "PNG")
    parts = [
        Table(["of", "this"], [["x", "1"]], "the table"), heat, Scatter("dots", "Dots", {"a": [(0.0, 0.0), (1.0, 2.0)]}),
        Picture("picture", "Picture", picture.getvalue(), "three by two"),
    ]  # fmt: skip
    return Page("Title", "about", [Sentence("goes", True), Sentence("stays", False)], [Section("All", parts)])


def test_what_a_page_holds():
    files = ["01-heat.png", "02-dots.png", "03-picture.png"]
    text = html.render(small(), files)
    parsed = Parsed(text)
    assert [one["href"] for one in parsed.all("a")] == files
    (image,) = parsed.all("img")
    assert image["alt"] == "three by two"
    shown = Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert shown.size == (3, 2)
    labels = [one.get("aria-label") for one in parsed.all("svg")]
    assert labels[0] == "Heat map of 1 by 2 cells, row by column; from 0.250 at a, b to 0.250 at a, b."
    assert labels[1] == "Scatter of points in a plane: 2 of a."
    assert "a, c: none" in text and ">0.25<" in text and "prefers-color-scheme: dark" in text
    assert re.search(r'class="good"><span class="mark">fits</span> goes', text)
    assert re.search(r'class="bad"><span class="mark">mind</span> stays', text)


def test_a_folder_of_a_report(tmp_path):
    """It is made with its parents, replaced with the PNGs of before, and keeps what others put there."""
    document, folder = report_documents.deltas(), tmp_path / "new" / "report"
    html.prepare(folder)
    assert not folder.exists()
    assert html.write_report(document, folder) == folder / "report.html"
    first = {file.name for file in folder.iterdir()}
    assert len(first) > 3 and first >= {"report.html", "01-cosine.png", "02-signs.png"}
    for name in first - {"report.html"}:
        assert Image.open(folder / name).size[0] > 200
    (folder / "mine.txt").write_text("kept")
    (folder / "report.html").write_text((folder / "report.html").read_text().replace("01-cosine.png", "../mine.txt"))
    html.prepare(folder)
    with pytest.raises(RecipeError, match=r"report: holds 01-cosine\.png, which is not of the report"):
        html.write_report(document, folder)
    (folder / "01-cosine.png").unlink()
    html.write_report(report_documents.tokens(), folder)
    assert {file.name for file in folder.iterdir()} == {"report.html", "mine.txt"}


def test_a_report_of_many_charts_is_known_again(tmp_path):
    names = [f"{n:02}-unbiased-encoder.png" for n in range(1, 1000)]
    for name in names:
        (tmp_path / name).touch()
    listed = " ".join(names)
    made = f'<meta name="generator" content="fuse inspect 0" data-files="{listed}">'
    (tmp_path / "report.html").write_text(made)
    html.write_report(report_documents.tokens(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_folders_that_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match=r"/file: is a file, not a folder for a report$"):
        html.prepare(tmp_path / "file")
    for name, text in {"notes.txt": "x", "report.html": '<meta name="generator" content="another">'}.items():
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        told = r": is not empty, and no report of fuse inspect \(name another folder\)$"
        with pytest.raises(RecipeError, match=told):
            html.prepare(folder)
        with pytest.raises(RecipeError, match=told):
            html.write_report(report_documents.tokens(), folder)
        assert [file.name for file in folder.iterdir()] == [name]
    with pytest.raises(MachineError, match=r"cannot be (read|written) \(Not a directory\)$"):
        html.write_report(report_documents.tokens(), tmp_path / "file" / "inside")


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MachineError) as error:
        html.prepare(tmp_path / "report")
    told = "fuse inspect --report draws with matplotlib, which is not installed (pip install fuse-mllm[inspect])"
    assert str(error.value) == told


def test_sentences_and_the_order_of_verdicts():
    document = report_documents.deltas()
    page = html.page_of(document)
    assert [one.agrees for one in page.verdicts] == [False, True]
    encoders = report_documents.encoders()
    page = html.page_of(encoders, report_documents.samples(encoders))
    assert [one.text for one in page.verdicts] == ["a and b see alike.", "8 images."]
    names = [chart.name for chart in page.charts]
    assert names == ["unbiased-encoder", "tokens-encoder", "tokens-projector", "biased-encoder"]
    assert html.page_of(encoders).charts[-1].name == "biased-encoder" and len(html.page_of(encoders).charts) == 2
    last = page.charts[0]
    assert isinstance(last, Heat)
    np.testing.assert_array_equal(last.values, encoders["pairs"][0]["layers"]["unbiased"])
    assert (last.rows, last.columns) == (["0", "1"], ["0", "1", "2"])
    told = [chart.caption for chart in page.charts if isinstance(chart, Scatter)]
    assert told[0].startswith("They share no space") and told[1].startswith("The two main directions of all")


def test_the_score_of_a_pair_that_was_not_measured_whole():
    page = html.page_of(report_documents.pairs())
    table = page.sections[0].parts[0]
    assert isinstance(table, Table) and list(table.rows[0]) == ["a, b", "≤0.50", *["0.50"] * 6, "-", "0.25, 0.75"]
    scores, parts = page.charts
    assert isinstance(scores, Heat) and scores.values == [[None, 0.5], [0.5, None]]
    assert isinstance(parts, Heat) and list(parts.values[0]) == [0.5] * 5 + [None]
    assert [one.text for one in page.verdicts] == ["a and b fit."]


def test_the_picture_of_attention_is_bright_where_the_map_is(tmp_path):
    document = report_documents.attention()
    (picture, _) = html.page_of(document, image=report_documents.image()).charts
    assert isinstance(picture, Picture) and "brightest 75% of the way from the left and 25% from the top" in picture.alt
    pixels = np.asarray(Image.open(BytesIO(picture.png)).convert("RGB"), dtype=float)
    height, width, _ = pixels.shape
    assert (width, height) == (420, 210)
    corners = {
        (r, c): pixels[r * height // 2 :, c * width // 2 :][: height // 2, : width // 2].mean()
        for r in (0, 1)
        for c in (0, 1)
    }
    assert max(corners, key=lambda at: corners[at]) == (0, 1)
    assert Path(html.write_report(document, tmp_path / "r", image=report_documents.image())).exists()
