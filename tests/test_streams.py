"""Standard streams that are not UTF-8: what is said and what is read gets through them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAY = "from fuse.cli import _open_streams; _open_streams(); print('\\u2264 0.5 MMD\\xb2 \\udcff')"
# PYTHONIOENCODING -> what becomes of a letter, of one that Latin has, and of a byte in the name of a file
SAID = {
    "ascii": b"\\u2264 0.5 MMD\\xb2 \\udcff\n",
    "ascii:surrogateescape": b"\\u2264 0.5 MMD\\xb2 \\udcff\n",
    "latin-1": b"\\u2264 0.5 MMD\xb2 \\udcff\n",
    "utf-8:strict": "\u2264 0.5 MMD\xb2 \\udcff\n".encode(),
    "utf-8:surrogateescape": "\u2264 0.5 MMD\xb2 ".encode() + b"\xff\n",
}


def ran(place: Path, encoding: str, *args: str, typed: bytes = b"", **env: str) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of Python in a folder, as bytes."""
    around = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, **env}
    done = subprocess.run(
        [sys.executable, *args], cwd=place, env=around, input=typed, capture_output=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("encoding", SAID)
def test_what_a_stream_cannot_say(tmp_path: Path, encoding: str) -> None:
    assert ran(tmp_path, encoding, "-c", SAY) == (0, SAID[encoding], b"")


def test_a_command_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "\u2264.yaml").touch()
    asked = {"_FUSE_COMPLETE": "bash_complete", "COMP_WORDS": "fuse\nplan\n", "COMP_CWORD": "2"}
    told = ran(tmp_path, "latin-1", "-m", "fuse", **asked)
    assert told == (0, b"path,\\u2264.yaml\ndir,\n", b"")


def test_an_answer_that_is_no_text(tmp_path: Path) -> None:
    code, out, err = ran(tmp_path, "utf-8:strict", "-m", "fuse", "recipe", "new", typed=b"ma\xff\n")
    assert (code, out) == (2, b"")
    said = b"fuse: 'ma\\udcff' is none of these (known: encoder, expert, fuse, graft, merge)"
    assert err.splitlines()[-1] == said
