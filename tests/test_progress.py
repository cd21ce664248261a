"""Progress as people see it: lines where nothing draws, a bar in a terminal that draws, nothing where it is quiet."""

import os
import pty
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuse import progress
from fuse.sizes import duration_text

ROOT = Path(__file__).parent.parent
GB = 10**9


def test_lines_tell_bytes_rate_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 3.0, 10.0, 20.0])  # begun, and at each tenth that is told
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with progress.byte_progress(2 * GB, shown=True, name="merge") as add:
        for count in (GB // 10, GB // 5, GB // 50, GB - GB // 10 - GB // 5 - GB // 50, GB):
            add(count)
    assert capsys.readouterr().err == (
        "merge: 10% of 2.0 GB, 100.0 MB/s, 17 s left\nmerge: 50% of 2.0 GB, 100.0 MB/s, 10 s left\n"
        "merge: 100% of 2.0 GB, 100.0 MB/s\n"
    )


def test_quiet_and_little_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for total, shown in ((2 * GB, False), (10**6, True)):
        with progress.byte_progress(total, shown=shown) as add:
            add(total)
    assert capsys.readouterr().err == ""


DRAWN = (
    "import time\nfrom fuse.progress import byte_progress, count_progress\n"
    "with byte_progress(2 * 10**9, shown=True, name='merge') as add:\n"
    "    for _ in range(8):\n        add(10**9 // 4); time.sleep(0.15)\n"
    "with count_progress(4, 'out[b]', 'questions', shown=True) as add:\n"
    "    for _ in range(4):\n        add(1); time.sleep(0.4)\n"
    "print('the end')\n"
)


def terminal(environment: dict[str, str]) -> str:
    """What a terminal of 100 columns gets."""
    plain = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}}
    pid, handle = pty.fork()
    if pid == 0:
        given = {**plain, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environment}
        os.execve(sys.executable, [sys.executable, "-c", DRAWN], given)
    shown = b""
    while True:
        try:
            more = os.read(handle, 65536)
        except OSError:  # how Linux says that nobody writes any more
            break
        if not more:
            break
        shown += more
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    os.close(handle)
    return shown.decode()


@pytest.mark.parametrize("no_color", [False, True])
def test_a_bar_with_bytes_rate_and_time(no_color: bool) -> None:
    shown = terminal({"TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_color else {})})
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"merge ━.* 1\.\d/2\.0 GB [\d.]+ GB/s 0:00:0\d", words), words
    assert re.search(r"out\[b\] ━.* 3/4 ", words) and words.rstrip().endswith("the end")
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9][;m]", shown)) != no_color


def test_a_terminal_that_cannot_draw_gets_lines() -> None:
    shown = terminal({"TERM": "dumb"})
    assert "\x1b" not in shown and "merge: 50% of 2.0 GB, " in shown and "━" not in shown


def test_durations() -> None:
    assert [duration_text(n) for n in (0, 9.94, 99.4, 100, 5399, 5400)] == [
        "0.0 s",
        "9.9 s",
        "99 s",
        "1.7 min",
        "90.0 min",
        "1.5 h",
    ]
