"""The group `fuse inspect`: its kinds, what it says of others, and that help costs nothing."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from fuse.commands.inspect import KINDS
from tests.cli import fuse_here

KNOWN = [kind for kind in KINDS if find_spec(f"fuse.commands.inspect_{kind}")]


def test_help_lists_every_kind() -> None:
    ran = fuse_here("inspect", "--help")
    assert (ran.code, ran.err) == (0, "")
    lines = [" ".join(line.split()) for line in ran.out[ran.out.index("What:") :].splitlines()]
    assert "Tell before a merge whether parts fit together." in ran.out
    told = " ".join(lines)
    assert all(f"{kind} {sentence}" in told for kind, sentence in KINDS.items())


def test_the_verb_is_in_the_help_of_fuse() -> None:
    told = " ".join(fuse_here("--help").out.split())
    assert "inspect Tell before a merge whether parts fit together." in told


@pytest.mark.parametrize("kind", ["token", "Tokens", "--tokens", "../tokens"])
def test_another_kind(kind: str) -> None:
    ran = fuse_here("inspect", kind, "A", "B")
    sentence = f"nothing called {kind!r} to inspect; there are encoders, deltas, attention, tokens, pairs"
    wanted = f"No such option '{kind}'." if kind.startswith("-") else sentence
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith(f"fuse: {wanted}")


@pytest.mark.parametrize("kind", KNOWN)
def test_help_of_a_kind(kind: str) -> None:
    ran = fuse_here("inspect", kind, "--help")
    assert (ran.code, ran.err) == (0, "") and f"inspect {kind} [OPTIONS]" in ran.out and "--json" in ran.out


@pytest.mark.parametrize("kind", KNOWN)
def test_nothing_to_inspect(kind: str) -> None:
    ran = fuse_here("inspect", kind)
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith("fuse: ") and ran.err.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    kinds = [["--help"], *([kind, "--help"] for kind in KNOWN)]
    code = (
        "import sys\nfrom fuse.cli import cli\n"
        f"for args in {kinds!r}:\n"
        "    try:\n        cli.main(['inspect', *args], standalone_mode=False)\n    except SystemExit:\n        pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors', 'matplotlib', 'sklearn', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
