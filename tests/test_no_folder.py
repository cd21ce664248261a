"""What is said of folders that are elsewhere."""

from pathlib import Path

import pytest

from tests.cli import fuse_here

SAID = {
    "nothing": "nothing: there is no such folder",
    "org/model": "org/model: there is no such folder (hf download org/model --local-dir FOLDER brings a repository of the hub)",
    "here/model": "here/model: there is no such folder",  # its parent is a folder of this disk
    "hf://org/model": "hf://org/model: this verb reads folders of this disk (hf download org/model --local-dir FOLDER brings a repository of the hub)",
    "s3://bucket/out": "s3://bucket/out: this verb reads folders of this disk (aws s3 cp --recursive s3://bucket/out FOLDER)",
    "gs://bucket/out": "gs://bucket/out: this verb reads folders of this disk (copy it with the store's own tool)",
    "file": "file: is a file, not a folder",
    "../org/model": "../org/model: there is no such folder",
}


@pytest.mark.parametrize("verb", [("verify",), ("ask", "hi")])
@pytest.mark.parametrize("name", SAID)
def test_where_a_folder_is_told(verb: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "work/here").mkdir(parents=True)
    (tmp_path / "work/file").touch()
    monkeypatch.chdir(tmp_path / "work")
    ran = fuse_here(verb[0], name, *verb[1:])
    assert (ran.code, ran.err) == (2, f"fuse: {SAID[name]}\n")
