"""Names of members and branches."""

import subprocess
import sys

import pytest

from fuse.names import TAKEN, mistake_in


@pytest.mark.parametrize("name", ["a", "m0", "Llava-1_5", "x" * 64])
def test_good(name: str) -> None:
    assert mistake_in(name) is None


@pytest.mark.parametrize("name", ["", "1a", "_a", "a.b", "a/b", "..", "/tmp/x", "a b", "é", "x" * 65, 5, None, ["a"]])
def test_no_names(name: object) -> None:
    assert mistake_in(name) == "a name is a letter followed by letters, digits, - or _"


def test_words_with_a_meaning() -> None:
    assert mistake_in("merge") == "the word has a meaning in recipes"
    assert mistake_in("half") == "torch's modules keep the word for themselves"


def test_everything_that_a_module_dict_has_is_taken() -> None:
    """In a process of its own: some libraries add methods to torch's modules."""
    program = "import torch; print(*(name for name in dir(torch.nn.ModuleDict()) if name[0] != '_'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= TAKEN
