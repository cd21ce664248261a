"""fuse.team: threads end, whichever of them fails and wherever a signal comes."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fuse.team import ended, finished, made, team

WORKING = """
import signal, sys, threading
from fuse import interruption, progress
from fuse.team import made, team

def a_team():
    stop = threading.Event()
    with team(3, stop) as pool:
        made({{n: pool.submit(pow, n, 2) for n in range(20)}}, stop)

def a_bar():
    with progress.byte_progress(100, shown=True) as tell:
        tell(50)

progress.draws = lambda: True
taken, main = 0, threading.get_ident()
enter = threading.Condition.__enter__

def after_a_lock(self):
    global taken
    got = enter(self)
    if threading.get_ident() == main:
        taken += 1
        if taken == at:
            signal.raise_signal(signal.{name})
    return got

threading.Condition.__enter__ = after_a_lock
at = 0
while taken >= at:
    at, taken = at + 1, 0
    {listen}
    try:
        {work}()
        assert taken < at, "the signal was lost"
    except (KeyboardInterrupt, SystemExit):
        pass
    for thread in threading.enumerate():
        assert thread is threading.current_thread() or thread.join(10) or not thread.is_alive(), thread
print(at)
"""


def test_a_team_stops_when_one_fails() -> None:
    stop, ran = threading.Event(), []

    def work(number: int) -> None:
        if number == 1:
            raise ValueError(number)
        ran.append(number)
        assert stop.wait(30)

    with pytest.raises(ValueError, match=r"^1$"), team(2, stop) as pool:
        jobs = [pool.submit(work, number) for number in range(100)]
        list(finished(jobs, stop))
    assert len(ran) < 3


@pytest.mark.parametrize("threads", [1, 3])
def test_a_team_gives_every_result(threads: int) -> None:
    stop = threading.Event()
    with team(threads, stop) as pool:
        jobs = [pool.submit(pow, n, 2) for n in range(50)]
        assert sorted(job.result() for job in finished(jobs, stop)) == sorted(n * n for n in range(50))
        assert made({n: pool.submit(pow, n, 2) for n in range(9)}, stop) == {n: n * n for n in range(9)}
        assert list(ended([])) == []


def test_of_several_failures_the_first_is_told() -> None:
    stop, together = threading.Event(), threading.Barrier(3)

    def work(number: int) -> None:
        together.wait(30)
        time.sleep(0.05 * (3 - number))  # the last ends first
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"^0$"), team(3, stop) as pool:
        made({number: pool.submit(work, number) for number in range(3)}, stop)
    assert stop.is_set()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_right_after_a_lock_was_taken(name: str, tmp_path: Path) -> None:
    """Raised there, as Python does, it would leave the lock closed: each lock that the main thread takes in turn."""
    assert _run(WORKING.format(name=name, work="a_team", listen="interruption.listen()"), tmp_path) > 40


def test_a_signal_right_after_a_lock_of_a_bar(tmp_path: Path) -> None:
    assert _run(WORKING.format(name="SIGINT", work="a_bar", listen="interruption.listen()"), tmp_path) > 2


def test_a_program_of_others_is_as_safe(tmp_path: Path) -> None:
    listen = "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert _run(WORKING.format(name="SIGINT", work="a_team", listen=listen), tmp_path) > 40


def _run(program: str, folder: Path) -> int:
    (folder / "program.py").write_text(program)
    beginning = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    done = subprocess.run(
        [sys.executable, "-c", f"{beginning}exec(open('program.py').read())"], check=False, capture_output=True,
        text=True, timeout=240, cwd=folder,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr
    return int(done.stdout)
