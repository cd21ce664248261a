"""What is taken out of our modules for portable folders, and how it is written."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fuse.branches.kinds import KINDS as BRANCHES
from fuse.branches.projector_kinds import PROJECTORS
from fuse.errors import FuseError
from fuse.export import portable_reach
from fuse.export.portable import sources
from fuse.export.portable_reach import reached, read_module
from fuse.export.portable_source import written
from fuse.grafts.kinds import KINDS as GRAFTS

FIRST = '''"""What the first does."""

import os
import re
from importlib import import_module

from torch import nn, zeros

from fuse.room import second as other
from fuse.room.third import FAR, NEAR

# why there are three
SIZE = 3
UNUSED = re.compile("x")


@staticmethod
def run(n):
    # and why this is late
    from fuse.room.third import late

    return other.act(n, SIZE) + late(NEAR) + nn.Linear


def named(kind):
    return import_module(f"fuse.room.{kind}")


os.getcwd()
'''
SECOND = "def act(n, m):\n    return n * m\n\n\ndef idle():\n    return FAR\n"
THIRD = "NEAR, FAR = 1, 2\n\n\ndef late(n):\n    return n\n"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of three modules in place of ours."""
    where = tmp_path / "fuse" / "room"
    where.mkdir(parents=True)
    for name, text in {"first": FIRST, "second": SECOND, "third": THIRD, "__init__": ""}.items():
        (where / f"{name}.py").write_text(text)
    monkeypatch.setattr(portable_reach, "ROOM", tmp_path)
    read_module.cache_clear()
    yield
    read_module.cache_clear()


@pytest.mark.usefixtures("room")
def test_only_what_is_named_is_reached() -> None:
    assert reached([("fuse.room.first", "run")]) == {
        "fuse.room.first": {"run", "SIZE"}, "fuse.room.second": {"act"}, "fuse.room.third": {"NEAR", "FAR", "late"},
    }  # fmt: skip
    assert reached([("fuse.room.first", "FAR")]) == {"fuse.room.first": {"FAR"}, "fuse.room.third": {"FAR", "NEAR"}}
    assert reached([("fuse.room.second", "")]) == {"fuse.room.second": {"act", "idle"}}


@pytest.mark.usefixtures("room")
def test_a_name_that_is_not_there() -> None:
    with pytest.raises(FuseError, match=r"^module fuse\.room\.second defines no away$"):
        reached([("fuse.room.second", "away")])
    with pytest.raises(FuseError, match=r"^there is no module fuse\.room\.fourth$"):
        reached([("fuse.room.fourth", "away")])


@pytest.mark.usefixtures("room")
def test_the_text_of_a_file() -> None:
    assert (
        written("fuse.room.first", {"run", "SIZE", "named"}, [("fuse.room.third", "late")])
        == '''\
"""What the first does."""

# Written by `fuse export --to portable` from fuse.room.first; what this folder does not run is left out.

from importlib import import_module

from torch import nn

from . import fuse_room_second as other
from .fuse_room_third import NEAR

# why there are three
SIZE = 3


@staticmethod
def run(n):
    # and why this is late
    from .fuse_room_third import late

    return other.act(n, SIZE) + late(NEAR) + nn.Linear


def named(kind):
    return import_module(f".fuse_room_{kind}", __package__)


def _imported_by_name() -> None:
    """transformers copies the files that an import names, so these are named. Nothing calls this."""
    from .fuse_room_second import act
    from .fuse_room_third import late
'''
    )


def everything() -> dict[str, str]:
    """The code of a folder with every kind of branch, projector and graft."""
    branches = [{"kind": kind, "config": {}} for kind in BRANCHES]
    branches += [{"kind": "encoder", "config": {"projector": {"kind": kind}}} for kind in PROJECTORS]
    return sources({"branches": branches, "grafts": [{"kind": kind} for kind in GRAFTS]})


def test_every_import_of_ours_is_a_file_with_that_name() -> None:
    files = {name.removesuffix(".py"): ast.parse(text) for name, text in everything().items()}
    bound = {name: set(_bound(tree)) for name, tree in files.items()}
    for name, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "fuse" for alias in node.names), name
            if not isinstance(node, ast.ImportFrom):
                continue
            assert node.level or (node.module or "").split(".")[0] != "fuse", (name, node.module)
            for alias in node.names if node.level else ():
                known = bound[node.module] if node.module else files
                assert alias.name in known, f"{name}: from .{node.module or ''} import {alias.name}"


def _bound(tree: ast.Module) -> list[str]:
    found = []
    for node in tree.body:
        found += [a.asname or a.name for a in node.names] if isinstance(node, ast.ImportFrom) else []
        found += [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        found += [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return found


def test_no_name_is_undefined_and_no_module_is_named_as_a_text(tmp_path: Path) -> None:
    for name, text in everything().items():
        (tmp_path / name).write_text(text)
        assert 'import_module(f"fuse' not in text and 'import_module("fuse' not in text
    rules = ["check", "--isolated", "--no-cache", "--select", "F821,F822,F823,E9", str(tmp_path)]
    ran = subprocess.run([sys.executable, "-m", "ruff", *rules], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_a_kind_brings_no_other() -> None:
    alone = sources({"branches": [{"kind": "native", "config": {}}], "grafts": []})
    assert "fuse_branches_native.py" in alone
    assert not {"fuse_branches_mgm.py", "fuse_branches_encoder.py", "fuse_grafts_lion.py"} & alone.keys()
    with pytest.raises(KeyError):
        sources({"branches": [{"kind": "wings", "config": {}}]})
