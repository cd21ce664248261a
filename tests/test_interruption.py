"""fuse.interruption: a signal that Python loses ends the command all the same."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOST = """
import os, signal
from fuse import interruption

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):  # the signal's handler runs between two of these
            pass

interruption.listen()
one = Swallows()
del one
print("it was lost", flush=True)
try:
    interruption.check()
except (KeyboardInterrupt, SystemExit) as stop:
    print(repr(stop))
"""


@pytest.mark.parametrize(
    ("name", "told"), [("SIGINT", "KeyboardInterrupt()"), ("SIGTERM", "SystemExit(143)"), ("SIGHUP", "SystemExit(143)")]
)
def test_what_a_destructor_swallows_is_raised_at_the_next_check(name: str, told: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LOST.format(name=name))
    done = subprocess.run(
        [sys.executable, program], check=False, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert done.stdout == f"it was lost\n{told}\n", done.stderr
    assert "Exception ignored in" in done.stderr


def test_a_check_without_a_signal_does_nothing() -> None:
    program = "from fuse import interruption as i; i.check(); i.listen(); i.check(); print('on')"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == "on\n", done.stderr


def test_an_ignored_interrupt_stays_ignored() -> None:
    program = "import os, signal; from fuse import interruption as i; i.listen(); os.kill(os.getpid(), 2); print('on')"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert done.stdout == "on\n", done.stderr


def test_a_signal_waits_for_the_end_of_a_moment() -> None:
    program = """
import os
from fuse import interruption
interruption.listen()
try:
    with interruption.held():
        with interruption.held():
            os.kill(os.getpid(), 15)
        print("on", flush=True)
    print("never")
except SystemExit as stop:
    print(stop.code)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == "on\n143\n", done.stderr
