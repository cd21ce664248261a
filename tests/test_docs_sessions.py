"""How a page's session is read, compared and renewed; tests/test_docs.py runs the pages."""

from pathlib import Path

import pytest

from tests import sessions


def test_a_session_is_compared_to_the_letter() -> None:
    block = "$ fuse plan a\nmembers\n...\n  read 1.2 MB in 0.3 s\n$ fuse schema\n"
    first, second = sessions.steps(block)
    assert (first.command, second) == ("fuse plan a", sessions.Step("fuse schema", ""))
    assert sessions.agrees(first.said, "members\n  a\n  b\n  read 1.2 MB in 17.4 s")
    assert not sessions.agrees(first.said, "members\n  a\n  read 1.3 MB in 0.3 s")
    assert not sessions.agrees(first.said, "members\n  a\n  read 1.2 MB in 0.3 s\nmore")
    assert not sessions.agrees("", "anything")


def test_a_page_is_renewed_where_it_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "```console\n$ fuse plan none.yaml\nall is well\n```\nand\n```\n$ not this\n```\n"
    told = "fuse: none.yaml: there is no such file"
    assert sessions.renewed(text) == text.replace("all is well", sessions.ran("fuse plan none.yaml"))
    assert sessions.ran("fuse plan none.yaml") == told
    assert sessions.renewed(sessions.renewed(text)) == sessions.renewed(text)
