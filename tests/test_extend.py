"""docs/extend.md: its files and changes go into a copy of the source, its commands print what it says, its tests pass."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sessions import BLOCK

ROOT = Path(__file__).parent.parent
PAGE = "docs/extend.md"


def changed(text: str, diff: str) -> str:
    """The text with a diff's lines that begin with + put in and those that begin with - taken out."""
    lines = diff.splitlines()
    old, new = (
        "".join(f"{line[1:]}\n" for line in lines if line[:1] in (" ", sign) and line[:3] not in ("---", "+++"))
        for sign in "-+"
    )
    assert text.count(old) == 1, f"found {text.count(old)} times:\n{old}"
    return text.replace(old, new)


def extend(page: str, folder: Path) -> list[str]:
    """Write the page's files into a copy of the source and change its tables; returns the tests among them."""
    tests = []
    for language, block in BLOCK.findall(page):
        file, _, rest = block.partition("\n")
        if language == "python" and "/" in file:
            assert not (folder / file[2:]).exists()
            (folder / file[2:]).write_text(rest)
            tests += [file[2:]] * file.startswith("# tests/")
        elif language == "diff":
            path = folder / file.removeprefix("--- ")
            path.write_text(changed(path.read_text(), block))
    return tests


def test_a_change_must_fit() -> None:
    diff = "--- a.py\n+++ a.py\n one\n-two\n+three\n"
    assert changed("zero\none\ntwo\n", diff) == "zero\none\nthree\n"
    with pytest.raises(AssertionError, match="found 0 times"):
        changed("one\n two\n", diff)


def test_the_page_extends_fuse(tmp_path: Path) -> None:
    for name in ("fuse", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "goldens" if name == "tests" else "")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("recipes", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    page = (ROOT / PAGE).read_text()
    tests = [*extend(page, tmp_path), "tests/families/test_text.py", "-k", "median or helium"]
    code = (
        "import sys, pytest\nfrom tests import conftest, sessions\n"
        f"sys.argv = ['', '{PAGE}']\nsessions.main()\nsys.exit(pytest.main({['-p', 'no:cacheprovider', *tests]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed and int(passed[1]) > 10, done.stdout
    assert (tmp_path / PAGE).read_text() == page
