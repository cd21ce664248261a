"""Running `fuse` in tests as a user does."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def fuse(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    """Run `python -m fuse` in a process of its own."""
    import os

    done = subprocess.run(
        [sys.executable, "-m", "fuse", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=240,
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def fuse_forked(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    """As `fuse`, in a fork of a process that has imported what the verbs need: a process of its own, without the imports.

    It has one thread, so that what it starts itself (the reader of pickles) may be a fork too. What libraries read from
    the environment as they are imported stays, but for the settings of huggingface_hub.
    """
    from tests.attacks.harness import attack

    ran = attack([*map(str, args)], cwd or Path.cwd(), env=env, limits={"CPU": 240, "DATA": -1}, wall=240)
    return Ran(ran.code, ran.out, ran.err)


def fuse_here(*args: object) -> Ran:
    """Run the same command line in this process, without paying for imports again; exit code and streams likewise."""
    import contextlib
    import io

    from fuse.cli import main

    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["fuse", *map(str, args)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = before
    return Ran(code, out.getvalue(), err.getvalue())
