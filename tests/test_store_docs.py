"""docs/stores.md: its recipe and commands run, against an S3 server on this machine."""

import re
import shlex
from pathlib import Path

import pytest

from tests import recipe_members
from tests.cli import fuse_here
from tests.store_server import s3_server
from tests.test_docs import blocks, commands

DOCUMENT = "docs/stores.md"


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe,) = [text for language, text in blocks(DOCUMENT) if language == "yaml"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3_server() as store:
        for key, value in store.env.items():
            monkeypatch.setenv(key, value)
        for seed, name in enumerate(re.findall(r"s3://models/(\w+)", recipe)):
            store.put(recipe_members.save("llama", tmp_path / "members" / name, seed), name)
        (tmp_path / "recipe.yaml").write_text(recipe)
        for line in commands(DOCUMENT):
            ran = fuse_here(*shlex.split(line)[1:])
            assert (ran.code, ran.err) == (0, ""), line
        here = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
        assert {name: store.read(f"merged/{name}") for name in store.names("merged")} == here
