"""Completion in real shells: verbs, options, choices, recipes and folders, also such with spaces in their names."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import fuse_here

SETUP = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(fuse completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -D -u; eval "$(fuse completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "fuse completion fish | source"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes, and a `fuse` that shells find."""
    root = tmp_path_factory.mktemp("completion")
    (root / "my recipes").mkdir()
    for name in ("top.yaml", "my recipes/a b.yml", "notes.txt", "asked.jsonl"):
        (root / name).touch()
    (root / "bin").mkdir()
    (root / "bin" / "fuse").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fuse "$@"\n')
    (root / "bin" / "fuse").chmod(0o755)
    return root


def environment(place: Path) -> dict[str, str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "xterm", "PS1": "$ "}


# the words of a line -> what bash is given
LINES = {
    ("fuse", "mer"): ["merge"],
    ("fuse", "merge", "--eng"): ["--engine"],
    ("fuse", "merge", "top.yaml", "out", "--engine", ""): ["local", "ray"],
    ("fuse", "plan", ""): ["top.yaml"],
    ("fuse", "plan", "my recipes/"): ["my recipes/a b.yml"],
    ("fuse", "eval", "out", "--data", ""): ["asked.jsonl"],
    ("fuse", "import", "cl"): ["clipcap"],
    ("fuse", "recipe", "new", "--want", ""): ["fuse", "merge", "expert", "encoder", "graft"],
    ("fuse", "recipe", "new", "--method", "dare"): ["dare_linear", "dare_ties"],
    ("fuse", "recipe", "new", "--method", "pass"): [],
    ("fuse", "recipe", "new", "--dtype", ""): ["same", "bfloat16", "float16", "float32"],
    ("fuse", "recipe", "new", "--projector", "my"): [],
    ("fuse", "search", "--method", ""): ["grid", "coordinate", "bayes"],
    ("fuse", "completion", ""): ["bash", "zsh", "fish"],
    ("fuse", "no-such-verb", ""): [],
}


def test_bash(place: Path) -> None:
    """One bash for all lines; where no line is being completed, `compopt` has nothing to do and says so."""
    script = ['eval "$(fuse completion bash)"']
    for words in LINES:
        quoted = " ".join("'" + word.replace(" ", "\\ ") + "'" for word in words)
        script += [f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _fuse_completion fuse 2>errors",
                   'printf "%s\\n" "${COMPREPLY[@]}"; echo ---', "grep -v compopt errors"]  # fmt: skip
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(script)], cwd=place, env=environment(place), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    found = [[line for line in part.splitlines() if line] for part in done.stdout.split("---\n")[:-1]]
    assert dict(zip(LINES, found, strict=True)) == LINES and done.stderr == ""


@pytest.mark.parametrize("shell", SETUP)
def test_keys(place: Path, shell: str) -> None:
    """What a person sees who presses the tab key."""
    command, setup = SETUP[shell]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execvpe(command[0], command, environment(place))
    try:
        until(terminal, r"\$ |> |% |# ")
        os.write(terminal, f"{setup}; echo rea''dy\n".encode())
        until(terminal, "ready")
        for typed, seen in (
            ("fuse plan my\t\t", "a\\\\ b.yml"),
            ("fuse plan to\t", "top.yaml"),
            ("fuse mer\t", "merge"),
        ):
            os.write(terminal, b"\x15" + typed.encode())
            until(terminal, seen)
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def until(terminal: int, pattern: str) -> None:
    """Read what the terminal shows until the pattern is there."""
    shown, deadline = "", time.monotonic() + 60
    while not re.search(pattern, shown.replace("\b/", "/")):
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, f"{pattern!r} did not appear in {shown!r}"
        shown += os.read(terminal, 65536).decode(errors="replace")


def test_it_is_quick_and_imports_little(place: Path) -> None:
    code = (
        "import os, sys\nos.environ.update(COMP_WORDS='fuse merge top.yaml out --', COMP_CWORD='4')\n"
        "from fuse.cli import cli\nfrom fuse.completion import answer\n"
        "assert 'plain,--engine' in answer(cli, 'bash_complete')\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=place, env=environment(place), check=True, timeout=60)


def test_a_shell_that_it_does_not_know() -> None:
    ran = fuse_here("completion", "tcsh")
    assert (ran.code, ran.err) == (
        2, "fuse: Invalid value for '{bash|zsh|fish}': 'tcsh' is not one of 'bash', 'zsh', 'fish'.\n",
    )  # fmt: skip
