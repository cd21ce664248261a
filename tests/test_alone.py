"""A folder of results is held by one run at a time, and let go whatever happens."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fuse.alone import alone
from fuse.errors import RecipeError

HOLD = "import sys, time; from pathlib import Path; from fuse.alone import alone\nwith alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_second_run_is_refused_and_a_later_one_is_not(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(RecipeError) as told, alone(tmp_path):
        pass
    assert str(told.value) == (f"{tmp_path}: another run is writing into it (wait for it, or name another --out)")
    with alone(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_lets_go(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RecipeError), alone(tmp_path):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with alone(tmp_path):
        pass


def test_a_folder_that_got_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), alone(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with alone(tmp_path / "new"):
        (tmp_path / "new" / "log").write_text("x")
    assert (tmp_path / "new" / "log").read_text() == "x"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecipeError, match="--out exists and is not a folder"), alone(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
