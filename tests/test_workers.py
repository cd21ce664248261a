"""fuse.workers: one plan written by several processes, put together by `fuse commit`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuse.errors import RecipeError
from fuse.inputs import Input
from fuse.safetensors_header import stamp
from fuse.workers import Worker, inputs_of, worker_of
from tests.cli import fuse_here
from tests.members import save_family

RECIPE = "members: {a: a, b: b}\nlanguage: {method: linear, weights: 1}\noutput: {shard_size: 30KB}\n"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("workers"), "a", "b", num_hidden_layers=3)


@pytest.fixture
def recipe(family: Path, tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / name).symlink_to(family / name)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_workers_write_what_one_process_writes(recipe: Path, tmp_path: Path) -> None:
    assert fuse_here("merge", recipe, tmp_path / "one").code == 0
    started = [
        subprocess.Popen([sys.executable, "-m", "fuse", "merge", recipe, tmp_path / "out", "--worker", f"{i}/3"])
        for i in range(3)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "a", "b", "one", "recipe.yaml"]
    ran = fuse_here("commit", recipe, tmp_path / "out", "--json")
    assert (ran.code, json.loads(ran.out)["resumed"]) == (0, 0)
    assert contents(tmp_path / "out") == contents(tmp_path / "one") and not (tmp_path / ".out.partial").exists()
    hashes = json.loads((tmp_path / "out" / "fuse.json").read_text())
    assert all(hashes["sha256"].values()) and all(hashes["members"]["a"]["sha256"].values())


def test_a_worker_goes_on_where_it_was(recipe: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    assert fuse_here("merge", recipe, out, "--worker", "0/2").out == f"worker 0/2: 3 files of {out} written\n"
    first, second, _ = sorted((home / "folder").iterdir())
    whole, inode = first.read_bytes(), second.stat().st_ino
    first.write_bytes(whole[:-1] + b"?")
    assert fuse_here("merge", recipe, out, "--worker", "0/2", "--json").out == '{"worker": 0, "of": 2, "files": 3}\n'
    assert first.read_bytes() == whole and second.stat().st_ino == inode


def test_what_is_not_finished_is_not_put_together(recipe: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    said = f"fuse: {out}: no worker has written anything of it (fuse merge RECIPE OUT --worker 0/4)\n"
    assert fuse_here("commit", recipe, out).err == said
    assert fuse_here("merge", recipe, out, "--worker", "1/2").code == 0
    name = "model-00001-of-00005.safetensors"
    said = f"fuse: {home}: worker 0/2 has not written {name} yet (run it, or run it again: it goes on where it was)\n"
    assert (ran := fuse_here("commit", recipe, out)).err == said and ran.code == 2
    assert fuse_here("merge", recipe, out, "--worker", "0/2").code == 0
    (home / "folder" / name).write_bytes(b"short")
    ran = fuse_here("commit", recipe, out)
    assert ran.err == f"fuse: {home}: {name} is not as worker 0/2 wrote it (run it again)\n"
    assert not out.exists() and len(list((home / "folder").iterdir())) == 5


def lines_of(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def write_lines(journal: Path, lines: list[dict[str, Any]]) -> None:
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_worker_that_was_killed_while_it_hashed_its_inputs_has_not_finished(recipe: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    for number in range(2):
        assert fuse_here("merge", recipe, out, "--worker", f"{number}/2").code == 0
    journal = home / "worker-0001-of-0002.jsonl"
    write_lines(journal, [line for line in lines_of(journal) if not line.keys() & {"input", "complete"}])
    ran = fuse_here("commit", recipe, out)
    again = "run it, or run it again: it goes on where it was"
    assert (ran.code, ran.err) == (2, f"fuse: {home}: worker 1/2 has not finished ({again})\n") and not out.exists()
    assert fuse_here("merge", recipe, out, "--worker", "1/2").code == 0
    assert fuse_here("commit", recipe, out).code == 0
    members = json.loads((out / "fuse.json").read_text())["members"]
    assert all(all(members[name]["sha256"].values()) for name in "ab")


def test_a_worker_without_a_file_has_to_finish_too(recipe: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    for number in range(6):
        assert fuse_here("merge", recipe, out, "--worker", f"{number}/7", "--no-hash").code == 0
    told = f"fuse: {home}: worker 6/7 has not finished (run it, or run it again: it goes on where it was)\n"
    assert fuse_here("commit", recipe, out).err == told
    ran = fuse_here("merge", recipe, out, "--worker", "6/7", "--no-hash")
    assert (ran.code, ran.out) == (0, f"worker 6/7: 0 files of {out} written\n")
    journal = home / "worker-0006-of-0007.jsonl"
    whole = lines_of(journal)
    write_lines(journal, [*whole, {"run": {"pid": 1, "host": "another"}}])  # begun again, and killed
    assert fuse_here("commit", recipe, out).err == told
    write_lines(journal, whole)
    assert fuse_here("commit", recipe, out).code == 0


def test_workers_agree_on_who_hashes_what_although_their_copies_lie_elsewhere() -> None:
    def here(cache: str) -> dict[str, dict[Path, Input]]:
        far = Input("s3://models/a", (1, "etag"), (), far=True)
        return {"a": {Path(cache): far}, "b": {Path("/disk/b"): Input("/disk/b", (), ())}}

    shares = [inputs_of(Worker(number, 2), here(cache)) for number, cache in enumerate(("/cache", "/home/cache"))]
    assert [list(share) for share in shares] == [["/disk/b"], ["s3://models/a"]]
    assert shares[1] == {"s3://models/a": Path("/home/cache")}


def forged(file: Path) -> None:
    """Another last byte, and the time of change that the file had."""
    before, data = file.stat(), file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_is_another_one_by_now_is_seen(recipe: Path, tmp_path: Path) -> None:
    """Although it has the size, time and inode that it had."""
    out, home, name = tmp_path / "out", tmp_path / ".out.partial", "model-00002-of-00005.safetensors"
    assert fuse_here("merge", recipe, tmp_path / "one").code == 0
    for number in range(2):
        assert fuse_here("merge", recipe, out, "--worker", f"{number}/2").code == 0
    said = f"fuse: {home}: {name} is not as worker 1/2 wrote it (run it again)\n"
    forged(home / "folder" / name)
    ran = fuse_here("commit", recipe, out)
    assert (ran.code, ran.err) == (2, said) and not out.exists()
    (home / "folder" / name).unlink()
    (home / "folder" / name).symlink_to(tmp_path / "one" / name)
    assert fuse_here("commit", recipe, out).err == said
    assert fuse_here("merge", recipe, out, "--worker", "1/2").code == 0
    for file in (home / "folder").iterdir():
        file.touch()  # what looks changed and is not
    assert fuse_here("commit", recipe, out).code == 0
    assert contents(out) == contents(tmp_path / "one")


def test_check_reads_every_file(recipe: Path, tmp_path: Path) -> None:
    """A disk that gives other bytes back than it took changes no time."""
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    assert fuse_here("merge", recipe, out, "--worker", "0/1").code == 0
    file = home / "folder" / "model-00003-of-00005.safetensors"
    forged(file)
    journal = home / "worker-0000-of-0001.jsonl"
    lines = lines_of(journal)
    for line in lines:
        if line.get("shard", {}).get("name") == file.name:
            line["shard"]["stamp"] = list(stamp(file.stat()))
    write_lines(journal, lines)
    ran = fuse_here("commit", recipe, out, "--check")
    assert ran.err == f"fuse: {home}: {file.name} is not as worker 0/1 wrote it (run it again)\n"
    assert fuse_here("merge", recipe, out, "--worker", "0/1").code == 0
    assert fuse_here("commit", recipe, out, "--check").code == 0


def test_what_has_been_read_is_told(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert fuse_here("merge", recipe, out, "--worker", "0/1").code == 0
    monkeypatch.setattr("fuse.progress.WORTH_SHOWING", 0)
    told = fuse_here("commit", recipe, out, "--check").err.splitlines()
    assert told[-1].startswith("commit: 100% of ") and 1 < len(told) <= 5, told


def test_files_without_sha256_are_known_by_their_stamps(recipe: Path, tmp_path: Path) -> None:
    out, home, name = tmp_path / "out", tmp_path / ".out.partial", "model-00001-of-00005.safetensors"
    worker = ("merge", recipe, out, "--worker", "0/1", "--no-hash")
    assert fuse_here(*worker).code == 0
    ran = fuse_here("commit", recipe, out, "--check")
    hint = "leave --check out, or run the workers again without --no-hash"
    told = f"{name} was written with --no-hash, and there is nothing to check it by ({hint})"
    assert (ran.code, ran.err) == (2, f"fuse: {home}: {told}\n")
    forged(home / "folder" / name)
    said = f"fuse: {home}: {name} is not as worker 0/1 wrote it (run it again)\n"
    assert fuse_here("commit", recipe, out).err == said
    assert fuse_here(*worker).code == 0 and fuse_here("commit", recipe, out).code == 0
    assert fuse_here("merge", recipe, tmp_path / "one", "--no-hash").code == 0
    assert contents(out) == contents(tmp_path / "one")


def test_work_of_others_is_not_mixed(recipe: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    assert fuse_here("merge", recipe, out, "--worker", "1/2").code == 0
    anew = "remove it, or fuse merge RECIPE OUT --restart, which begins anew in one process"
    said = f"fuse: {home}: holds the work of teams of 2 and 3 ({anew})\n"
    assert fuse_here("merge", recipe, out, "--worker", "0/3").err == said
    said = f"fuse: {home}: holds what workers wrote (fuse commit completes it, --restart throws it away)\n"
    assert fuse_here("merge", recipe, out).err == said
    recipe.write_text(RECIPE.replace("weights: 1", "weights: {a: 1, b: 2}"))
    said = f"fuse: {home}: holds an unfinished merge of another recipe ({anew})\n"
    assert fuse_here("merge", recipe, out, "--worker", "1/2").err == said
    assert fuse_here("commit", recipe, out).err == said
    assert fuse_here("merge", recipe, out, "--restart").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out", "recipe.yaml"]


def test_what_was_killed_at_its_end_is_not_to_be_removed(recipe: Path, tmp_path: Path) -> None:
    """It may hold what the output replaces, though the recipe be another one by now."""
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    assert fuse_here("merge", recipe, out, "--worker", "0/1").code == 0
    write_lines(home / "journal.jsonl", [{"makes": {"what": "merge"}}, {"complete": 1}])
    said = f"fuse: {home}: holds the rest of a merge that was killed at its end"
    ran = fuse_here("merge", recipe, out, "--worker", "0/1")
    assert (ran.code, ran.err) == (2, f"{said} (fuse merge RECIPE OUT --restart begins anew)\n")


@pytest.mark.parametrize(
    ("environment", "number", "count"),
    [
        ({"RANK": "2", "WORLD_SIZE": "4"}, 2, 4),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, 4, 8),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, 0, 2),
    ],
)
def test_who_numbers_workers(environment: dict[str, str], number: int, count: int) -> None:
    assert worker_of("auto", environment) == Worker(number, count) == worker_of(f"{number}/{count}", {})


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "1/2/3", "", "0/0", "\u0660/\u0664"])
def test_no_worker(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        worker_of(text, {})
    assert str(caught.value) == f"--worker: {text!r} is not a worker such as 0/4, the first of four"


@pytest.mark.parametrize("environment", [{"RANK": "1"}, {"RANK": "\u00b2", "WORLD_SIZE": "4"}])
def test_nobody_numbers_workers(environment: dict[str, str]) -> None:
    with pytest.raises(RecipeError) as caught:
        worker_of("auto", environment)
    pairs = "RANK and WORLD_SIZE, SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, SLURM_PROCID and SLURM_NTASKS"
    assert str(caught.value) == f"--worker auto: nothing numbers this worker (set {pairs}, or say 0/4)"
