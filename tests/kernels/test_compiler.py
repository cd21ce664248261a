"""fuse.kernels.compiler: where compiled code is kept, and what happens where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuse.kernels import compiler

ONE_SUM = """
import torch
from fuse import kernels
from fuse.kernels.compiler import folder
from fuse.methods.arithmetic import combination
kernels.LEAST = 1
kernels.load()
print(combination([torch.ones(4), torch.full((4,), 3.0)], None, [0.5, 0.5]).tolist(), folder() is not None)
"""


@pytest.fixture(autouse=True)
def fresh():
    compiler.folder.cache_clear()
    yield
    compiler.folder.cache_clear()


def test_it_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = compiler.folder()
    assert found is not None and found.parent == tmp_path / "fuse" and found.name.startswith("kernels-")
    assert found.stat().st_mode & 0o777 == 0o700


def test_other_sources_have_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = compiler.folder()
    changed = tmp_path / "kernels"
    changed.mkdir()
    (changed / "compiler.py").write_text("x")
    monkeypatch.setattr(compiler, "__file__", str(changed / "compiler.py"))
    compiler.folder.cache_clear()
    assert compiler.folder() != before


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="has no owners of files")
def test_another_users_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert compiler.folder() is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="has no owners of files")
def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = compiler.folder()
    assert found is not None
    found.chmod(0o777)
    compiler.folder.cache_clear()
    assert compiler.folder() is None


@pytest.mark.parametrize("kept", [True, False])
def test_kernels_run_with_and_without_a_folder(kept: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = tmp_path / ("cache" if kept else "file/cache")
    for _ in range(1 + kept):  # the second finds what the first has compiled
        done = subprocess.run(
            [sys.executable, "-c", ONE_SUM], capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (f"[2.0, 2.0, 2.0, 2.0] {kept}\n", "")
    assert bool([*cache.rglob("*.nbi")] if kept else []) == kept
