"""The pages hang together: every link leads to a file and, where it names one, to a heading; every page is in the map."""

import re
from pathlib import Path

import pytest

from fuse.cli import VERBS
from fuse.methods.table import METHODS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")]
)


def prose(page: str) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: str) -> list[tuple[str, str]]:
    """(file, heading) of every link that does not leave the repository; the page itself where no file is named."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in target:
            file, _, heading = target.partition("#")
            path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
            found.append((path.relative_to(ROOT).as_posix(), heading))
    return found


def headings(page: str) -> set[str]:
    """What links call the headings of a page."""
    told = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    words = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line).lower() for line in told)
    return {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in words}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for file, heading in links(page):
        assert (ROOT / file).exists(), file
        assert not heading or heading in headings(file), f"{file}#{heading}"


def test_every_page_is_in_the_map() -> None:
    listed = {file for file, _ in links("docs/README.md")}
    assert {page for page in PAGES if page.startswith("docs/")} - listed == {"docs/README.md"}
    assert "docs/README.md" in {file for file, _ in links("README.md")}


def test_every_recipe_is_listed() -> None:
    listed = {file for file, _ in links("recipes/README.md") if file.endswith(".yaml")}
    assert listed == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/**/*.yaml")}


def test_every_page_can_be_reached() -> None:
    reached, new = set[str](), {"README.md"}
    while new:
        reached |= new
        new = {file for page in new for file, _ in links(page) if file.endswith(".md")} - reached
    cards = {page for page in PAGES if (ROOT / page).read_text().startswith("---\n")}  # of members, which are models
    assert set(PAGES) - cards <= reached, set(PAGES) - cards - reached


def test_changelog_names_every_verb_and_method() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert [verb for verb in VERBS if f"`fuse {verb}" not in text] == []
    assert [name for name in METHODS if "/" not in name and not re.search(rf"\b{name}\b", text)] == []


def test_headings_have_the_names_that_links_use() -> None:
    assert "int8-and-4-bits" in headings("docs/python.md")
    assert "does-it-help" in headings("docs/fuse.md")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_with_its_title(page: str) -> None:
    titles = re.findall(r"^# .*$", prose(page), re.MULTILINE)
    text = re.sub(r"\A---\n.*?\n---\n", "", (ROOT / page).read_text(), flags=re.DOTALL)
    assert len(titles) == 1 and text.startswith(titles[0])
