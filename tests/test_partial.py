"""fuse.partial, fuse.journal and fuse.rename: an output is all or nothing, and an interrupted one is gone on with."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fuse import partial, rename
from fuse import unfinished as leftovers
from fuse.errors import CheckpointError, MachineError, RecipeError
from fuse.export.folders import check_target as export_target
from fuse.importers.run import import_file
from fuse.journal import JOURNAL, Journal, Shard
from fuse.partial import Partial, new_folder, partial_folder
from fuse.unfinished import check_same, home_of, settle

MAKES = {"what": "merge", "plan": "abc", "device": "cpu", "inputs": {"/m/a": [1, 2, 3]}}
BUSY = """
import sys, time
from pathlib import Path
from fuse.partial import new_folder
with new_folder(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(tmp_path: Path) -> Path:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    return target


def write(one: Partial, name: str, text: str = "weights", synced: bool = True, digest: str = "d") -> None:
    (one.folder / name).write_text(text)
    one.journal.add(Shard(name, len(text), digest, "m", synced))


def unfinished(target: Path, *shards: str, makes: dict[str, Any] = MAKES, stop: BaseException | None = None) -> None:
    """A run that ended after some files."""
    with (
        pytest.raises(KeyboardInterrupt if stop is None else type(stop)),
        partial_folder(target, makes, files=3) as one,
    ):
        one.keep(lambda *_: True)
        for name in shards:
            write(one, name)
        (one.folder / "half").write_text("w")
        raise stop or KeyboardInterrupt


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert names(tmp_path) == [".out.partial"]
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught, partial_folder(target, MAKES, files=3) as one:
        write(one, "one")
        (one.folder / "half").write_text("w")
        raise KeyboardInterrupt
    kept = f"1 of 3 files are kept in {tmp_path / '.out.partial'}: the same command goes on from there"
    assert caught.value.__notes__ == [kept] and names(tmp_path) == [".out.partial"]
    with partial_folder(target, MAKES, files=3) as one:
        one.keep(lambda path, shard: path.read_text() == "weights" and shard == Shard("one", 7, "d", "m", True))
        assert list(one.kept) == ["one"] and names(one.folder) == ["one"]
        write(one, "two")
    assert names(tmp_path) == ["out"] and names(target) == ["one", "two"]


def test_an_interrupted_run_without_a_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught, partial_folder(tmp_path / "out", MAKES, files=3):
        raise SystemExit(143)
    assert caught.value.__notes__ == ["nothing was written"] and names(tmp_path) == []


@pytest.mark.parametrize("problem", ["size", "gone", "bytes"])
def test_a_file_that_is_not_as_the_journal_says_is_lost_for_good(tmp_path: Path, problem: str) -> None:
    """Also for the run after the next: it may find a file that has its room, and nothing in it yet."""
    target = tmp_path / "out"
    unfinished(target, "one", "two")
    file = home_of(target) / "folder" / "one"
    {"size": lambda: file.write_text("w"), "gone": file.unlink, "bytes": lambda: file.write_text("WEIGHTS")}[problem]()
    with pytest.raises(KeyboardInterrupt), partial_folder(target, MAKES, files=3) as one:
        one.keep(lambda path, _: path.read_text() == "weights")
        assert list(one.kept) == ["two"] and names(one.folder) == ["two"]
        (one.folder / "one").write_text("\0" * 7)
        raise KeyboardInterrupt
    with partial_folder(target, MAKES) as one:
        one.keep(lambda *_: True)
        assert list(one.kept) == ["two"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("plan", "other", "an unfinished merge of another recipe"),
        ("device", "cuda", "an unfinished merge on another device (cpu)"),
        ("inputs", {"/m/a": [1, 9, 3]}, "an unfinished merge of members that changed since"),
    ],
)
def test_an_unfinished_output_of_something_else_is_named_and_kept(
    tmp_path: Path, key: str, value: Any, told: str
) -> None:
    target = tmp_path / "out"
    unfinished(target, "one")
    with pytest.raises(RecipeError) as caught, partial_folder(target, {**MAKES, key: value}):
        pass
    assert str(caught.value) == f"{home_of(target)}: holds {told} (--restart throws it away)"
    assert names(home_of(target) / "folder") == ["half", "one"]
    with partial_folder(target, {**MAKES, key: value}, restart=True) as one:
        assert names(one.folder) == []
    assert names(tmp_path) == ["out"]


def test_another_version_s_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished(tmp_path / "out", "one")
    was = leftovers.__version__
    monkeypatch.setattr(leftovers, "__version__", "9.9")
    with pytest.raises(RecipeError, match=f"holds what fuse {was} left unfinished"):
        unfinished(tmp_path / "out")


def test_an_import_does_not_throw_a_merge_away(tmp_path: Path) -> None:
    unfinished(tmp_path / "out", "one")
    with pytest.raises(RecipeError) as caught, new_folder(tmp_path / "out"):
        pass
    told = "holds an unfinished merge (remove it, or choose another folder)"
    assert str(caught.value) == f"{home_of(tmp_path / 'out')}: {told}"


def test_workers_are_told_of_an_unfinished_export(tmp_path: Path) -> None:
    with partial_folder(tmp_path / "out", {"what": "export"}) as partial, pytest.raises(RecipeError) as caught:
        check_same(home_of(tmp_path / "out"), partial.journal, {"what": "merge"})
    told = "holds an unfinished export (--restart throws it away)"
    assert str(caught.value) == f"{home_of(tmp_path / 'out')}: {told}"


def test_of_an_unfinished_output_without_files_nothing_is_asked(tmp_path: Path) -> None:
    (home_of(tmp_path / "out") / "folder").mkdir(parents=True)
    (home_of(tmp_path / "out") / JOURNAL).write_text('{"makes":{"what":"merge","plan":"x"}}\n{"run":{"pi')
    (home_of(tmp_path / "out") / "folder" / "half").touch()
    with partial_folder(tmp_path / "out", MAKES) as one:
        assert names(one.folder) == []
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"strange":1}', '{"shard":{"name":1}}', '{"shard":3}'])
def test_a_journal_that_is_none(tmp_path: Path, line: str) -> None:
    unfinished(tmp_path / "out", "one")
    with (home_of(tmp_path / "out") / JOURNAL).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecipeError, match="holds a journal that cannot be read \\(--restart throws it away\\)"):
        unfinished(tmp_path / "out")
    with partial_folder(tmp_path / "out", MAKES, restart=True):
        pass
    assert names(tmp_path) == ["out"]


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    unfinished(tmp_path / "out", "one")
    journal = home_of(tmp_path / "out") / JOURNAL
    whole = journal.read_text()
    journal.write_text(whole + '{"shard":{"name":"two","by')
    with pytest.raises(KeyboardInterrupt), partial_folder(tmp_path / "out", MAKES, files=3) as one:
        assert list(one.journal.shards) == ["one"]
        raise KeyboardInterrupt
    assert journal.read_text().startswith(whole) and all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.parametrize("error", [CheckpointError("is broken"), RecipeError("is wrong")])
def test_what_the_input_is_to_blame_for_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    unfinished(tmp_path / "out", "one", stop=error)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MachineError("no GPU"), "no GPU; 1 of 3 files are kept"),
        (OSError(5, "Input/output error"), "Input/output error; 1 of 3 files are kept"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "out of memory; 1 of 3 files are kept"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory; 1 of 3 files are kept"),
        (RuntimeError("can't start new thread"), "out of memory; 1 of 3 files are kept"),
        (MemoryError(), "out of memory; 1 of 3 files are kept"),
    ],
)
def test_what_the_machine_is_to_blame_for_is_kept(tmp_path: Path, error: Exception, told: str) -> None:
    with pytest.raises(MachineError) as caught, partial_folder(tmp_path / "out", MAKES, files=3) as one:
        write(one, "one")
        raise error
    assert told in str(caught.value) and names(tmp_path) == [".out.partial"]


def test_a_bug_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="another"), new_folder(tmp_path / "out"):
        raise RuntimeError("another")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [28, 122])
def test_a_full_disk_is_left_empty(tmp_path: Path, number: int) -> None:
    with pytest.raises(MachineError) as caught, partial_folder(tmp_path / "out", MAKES, files=3, size=1234) as one:
        write(one, "one")
        raise OSError(number, os.strerror(number), str(one.folder / "two"))
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'out' / 'two'}: {os.strerror(number)} (the output needs 1,234 bytes, ")
    assert told.endswith(" are free); nothing was written") and names(tmp_path) == []


def test_two_do_not_write_one_output(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", BUSY, target], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        for enter in (lambda: settle(target), lambda: unfinished(target, "one")):
            with pytest.raises(RecipeError) as caught:
                enter()
            assert str(caught.value) == f"{target}: another fuse is writing it (process {other.pid} on {os.uname()[1]})"
        other.kill()
    with new_folder(target) as folder:  # the lock went with the process
        assert names(folder) == []
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("pid", "host", "refused"), [(1, "here", True), (None, "here", False), (1, "elsewhere", True), (0, "", False)]
)
def test_without_locks_the_journal_tells_who_writes(
    tmp_path: Path, pid: int | None, host: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    if pid is None:
        done = subprocess.Popen([sys.executable, "-c", ""])
        done.wait()
        pid = done.pid
    home = home_of(tmp_path / "out")
    home.mkdir()
    line = json.dumps({"run": {"pid": pid, "host": os.uname()[1] if host == "here" else host}}, separators=(",", ":"))
    (home / JOURNAL).write_text(line + "\n" if host else "")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    if not refused:
        Journal(home, tmp_path / "out").close()
        return
    with pytest.raises(RecipeError) as caught:
        Journal(home, tmp_path / "out")
    who = f"process {pid} on {os.uname()[1] if host == 'here' else host}; the file system has no locks"
    told = f"another fuse may be writing it ({who}) (if that has ended, remove the .partial folder beside it)"
    assert str(caught.value) == f"{tmp_path / 'out'}: {told}"


@pytest.mark.parametrize("what", ["file", "link", "stranger"])
def test_what_is_in_the_way_is_not_touched(tmp_path: Path, what: str) -> None:
    home = home_of(tmp_path / "out")
    if what == "file":
        home.touch()
    elif what == "link":
        (tmp_path / "elsewhere").mkdir()
        home.symlink_to(tmp_path / "elsewhere")
    else:
        home.mkdir()
        (home / "mine").touch()
    before = names(tmp_path)
    with pytest.raises(RecipeError) as caught, new_folder(tmp_path / "out"):
        pass
    assert str(caught.value) == f"{home}: is in the way and fuse did not make it (remove it yourself)"
    assert names(tmp_path) == before


def test_the_rest_of_a_removal_goes(tmp_path: Path) -> None:
    full(tmp_path)
    home_of(tmp_path / "out").mkdir()
    settle(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_every_verb_completes_what_was_killed_at_its_end(tmp_path: Path) -> None:
    """The output is there, and what it was made in is not yet gone."""
    home = home_of(full(tmp_path))
    for check in (
        lambda: export_target(tmp_path / "elsewhere", tmp_path / "out", force=False),
        lambda: import_file("clipcap", tmp_path / "file.pt", tmp_path / "out"),
    ):
        home.mkdir()
        with closing(Journal(home, tmp_path / "out")) as one:
            one.begin({"what": "import"})
            one.finish(1)
        with pytest.raises(RecipeError, match="the output already exists"):
            check()
        assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(24, "Too many open files")])
def test_what_was_just_made_goes(tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises((KeyboardInterrupt, MachineError)), new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def without_exchange(*_: object) -> None:
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(rename, "renameat2", without_exchange)
    target = full(tmp_path)
    with new_folder(target, force=True) as folder:
        (folder / "new").touch()
        assert names(target) == ["old"]
    assert names(target) == ["new"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_what_appears_meanwhile_stays(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(rename, "renameat2", without_exchange)
    with pytest.raises(RecipeError) as caught, partial_folder(tmp_path / "out", MAKES, files=1) as one:
        write(one, "one")
        (tmp_path / "out").mkdir()
    told = f"1 of 1 files are kept in {home_of(tmp_path / 'out')}: the same command goes on from there"
    assert str(caught.value) == f"{tmp_path / 'out'}: the output appeared while it was being made; {told}"
    assert names(tmp_path / "out") == [] and names(tmp_path) == [".out.partial", "out"]


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), KeyboardInterrupt()])
def test_what_was_there_comes_back_when_the_new_folder_cannot_take_its_place(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = full(tmp_path), Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self.name == "folder":
            raise error
        return real(self, to)

    monkeypatch.setattr(rename, "renameat2", without_exchange)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises((MachineError, KeyboardInterrupt)), new_folder(target, force=True):
        pass
    assert (target / "old").read_text() == "old" and names(tmp_path) == ["out"]


def killed(target: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forced run that is killed after a step, without a chance to clean up."""
    journal = home_of(target) / JOURNAL

    def last(path: Path) -> None:
        if path == target.parent and journal.exists() and "complete" in journal.read_text():
            os._exit(9)

    child = os.fork()
    if child == 0:
        try:
            if at != "exchange":
                monkeypatch.setattr(rename, "renameat2", without_exchange)
            if at == "aside":
                monkeypatch.setattr(Path, "rename", lambda self, to, real=Path.rename: (real(self, to), os._exit(9)))
            monkeypatch.setattr(partial, "_sync", last)
            with partial_folder(target, MAKES, files=1, force=True) as one:
                write(one, "new")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("at", ["exchange", "aside", "renamed"])
def test_a_run_killed_while_it_replaces_loses_nothing(tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = full(tmp_path)
    killed(target, at, monkeypatch)
    assert target.exists() is (at != "aside")
    settle(target)
    if at == "aside":
        assert names(target) == ["old"]
        with partial_folder(target, MAKES, files=1, force=True) as one:
            one.keep(lambda *_: True)
            assert list(one.kept) == ["new"]
    assert names(target) == ["new"] and names(tmp_path) == ["out"]


def test_what_an_exchange_left_is_never_taken_for_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = full(tmp_path)
    (target / "new").write_text("weighty")  # of the same name and size as the new one's
    killed(target, "exchange", monkeypatch)
    assert names(home_of(target) / "folder") == ["new", "old"]
    with partial_folder(target, MAKES, files=1, force=True) as one:
        one.keep(lambda *_: True)
        assert one.kept == {}
        write(one, "newer")
    assert names(target) == ["newer"] and names(tmp_path) == ["out"]


def test_an_interruption_after_the_end_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real, calls = full(tmp_path), shutil.rmtree, []

    def remove(path: Path, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(path, **options)

    with pytest.raises(KeyboardInterrupt) as caught, new_folder(target, force=True) as folder:
        (folder / "new").touch()
        monkeypatch.setattr(leftovers.shutil, "rmtree", remove)
    assert caught.value.__notes__ == [f"{target} is whole"]
    assert names(target) == ["new"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("sync", [True, False])
def test_nothing_waits_for_the_disk_where_that_is_not_wanted(
    tmp_path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    with new_folder(tmp_path / "out", sync=sync):
        pass
    assert bool(waited) is sync


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == 0o640
