"""Outputs published into an object store, on an S3 server of this machine: whole, or seen to be not."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fuse.checkpoint import INDEX
from fuse.journal import Journal
from fuse.stores.address import address_of
from fuse.stores.output import staging_for
from tests.cli import fuse_here
from tests.members import perturbed, save_member
from tests.store_server import Store


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("members")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=64))
    save_member(model, home / "one")
    save_member(perturbed(model, 1), home / "two")
    return home


@pytest.fixture
def recipe(folders: Path, tmp_path: Path) -> Path:
    """Three files of weights come of it."""
    members = f"members: {{one: {folders / 'one'}, two: {folders / 'two'}}}\n"
    file = tmp_path / "recipe.yaml"
    file.write_text(members + "language: {method: linear, weights: 0.5}\noutput: {shard_size: 150KB}\n")
    return file


def staged(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob(".*.staging"))


def sent(caplog: pytest.LogCaptureFixture, prefix: str) -> list[str]:
    """What was put or deleted under a prefix, in order, as the server logged it."""
    lines = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
    found = [re.search(rf"(PUT|DELETE) /models/{prefix}/([^ ?]+)", line) for line in lines]
    return [f"{one[1]} {one[2]}" for one in found if one]


def test_the_marker_comes_last(store: Store, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "werkzeug")
    ran = fuse_here("merge", recipe, "s3://models/first")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("s3://models/first: ") and not staged(tmp_path)
    order = sent(caplog, "first")
    weights = [word for word in order if word.endswith(".safetensors")]
    assert len(weights) > 1 and order[: len(weights)] == weights
    assert order[-3:] == ["PUT config.json", f"PUT {INDEX}", "PUT fuse.json"]
    local = fuse_here("merge", recipe, tmp_path / "here")
    assert local.code == 0, local.err
    here = {p.relative_to(tmp_path / "here").as_posix(): p for p in (tmp_path / "here").rglob("*") if p.is_file()}
    assert store.names("first") == sorted(here)
    for name, path in here.items():
        assert store.read(f"first/{name}") == path.read_bytes(), name
    # what was published is a member like any other
    again = tmp_path / "again.yaml"
    again.write_text(
        f"members: {{a: s3://models/first, b: {tmp_path / 'here'}}}\nlanguage: {{method: linear, weights: 0.5}}\n"
    )
    assert fuse_here("plan", again).code == 0


def test_what_is_there_stays_unless_forced(store: Store, recipe: Path, tmp_path: Path) -> None:
    store.write("taken/notes.txt", b"mine")
    ran = fuse_here("merge", recipe, "s3://models/taken")
    assert (ran.code, ran.err) == (
        2, "fuse: s3://models/taken: the output already exists (choose another folder, or --force)\n",
    )  # fmt: skip
    ran = fuse_here("merge", recipe, "s3://models/taken", "--force")
    assert (ran.code, ran.err) == (
        2, "fuse: s3://models/taken: the output exists and fuse did not make it (it has no fuse.json) (choose another "
        "folder, or remove it yourself)\n",
    )  # fmt: skip
    assert store.names("taken") == ["notes.txt"] and not staged(tmp_path)


def test_force_leaves_no_file_of_what_it_replaces(
    store: Store, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("fuse.json", "config.json", "model.safetensors", "vocab.json"):
        store.write(f"old/{name}", b"old")
    for name in ("notes.txt", "LICENSE"):
        store.write(f"old/{name}", b"mine")
    caplog.set_level("INFO", "werkzeug")
    caplog.clear()
    ran = fuse_here("merge", recipe, "s3://models/old", "--force")
    assert ran.code == 0, ran.err
    assert sent(caplog, "old")[:4] == [
        "DELETE fuse.json", "DELETE config.json", "DELETE model.safetensors", "DELETE vocab.json",
    ]  # fmt: skip
    names = store.names("old")
    assert {"notes.txt", "LICENSE", INDEX} <= set(names) and not {"model.safetensors", "vocab.json"} & set(names)
    told = json.loads(store.read("old/fuse.json"))["sha256"]
    assert {name: hashlib.sha256(store.read(f"old/{name}")).hexdigest() for name in told} == told


KILLED = """
import os, signal, sys
from s3fs import S3FileSystem
put, left = S3FileSystem.put_file, [int(sys.argv.pop(1))]
def put_file(self, *args, **kwargs):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return put(self, *args, **kwargs)
S3FileSystem.put_file = put_file
from fuse.cli import run
run()
"""


def test_a_killed_upload_is_gone_on_with(
    store: Store, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-c", KILLED, "2", "merge", str(recipe), "s3://models/killed"]
    done = subprocess.run(command, env={**os.environ, **store.env}, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    first = store.names("killed")
    assert len(first) == 2 and all(name.endswith(".safetensors") for name in first)
    (home,) = staged(tmp_path)
    store.write(f"killed/{first[1]}", b"another's")  # what was sent is sent again where it is not there any more
    caplog.set_level("INFO", "werkzeug")
    caplog.clear()
    ran = fuse_here("merge", recipe, "s3://models/killed")
    assert ran.code == 0, ran.err
    assert "files from an earlier run)" in ran.out and not home.exists()
    order = sent(caplog, "killed")
    assert f"PUT {first[0]}" not in order and f"PUT {first[1]}" in order and order[-1] == "PUT fuse.json"
    told = json.loads(store.read("killed/fuse.json"))["sha256"]
    assert {name: hashlib.sha256(store.read(f"killed/{name}")).hexdigest() for name in told} == told


def test_an_interrupted_upload_says_what_is_where(
    store: Store, recipe: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    put, times = s3fs.S3FileSystem.put_file, []

    def put_file(self: object, *args: object, **kwargs: object) -> object:
        times.append(args)
        if len(times) == 2:
            raise KeyboardInterrupt
        return put(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "put_file", put_file)
    ran = fuse_here("merge", recipe, "s3://models/stopped")
    (home,) = staged(tmp_path)
    files = len(list((home / "stopped").iterdir()))
    assert (ran.code, ran.err.lstrip("\n")) == (
        130, f"fuse: interrupted; 1 of {files} files are at s3://models/stopped, all are in {home}/stopped: the same "
        "command goes on from there\n",
    )  # fmt: skip
    monkeypatch.undo()
    for key, value in store.env.items():
        monkeypatch.setenv(key, value)
    text = recipe.read_text()
    recipe.write_text(text.replace("0.5", "0.25"))
    ran = fuse_here("merge", recipe, "s3://models/stopped")
    assert (ran.code, ran.err) == (
        2, f"fuse: {home}: holds a merge of another recipe, or of members that changed since, that was not published "
        "(--restart throws it away)\n",
    )  # fmt: skip
    store.write("stopped/notes.txt", b"mine")
    recipe.write_text(text)
    ran = fuse_here("merge", recipe, "s3://models/stopped")
    assert (ran.code, ran.err) == (
        2, "fuse: s3://models/stopped: holds 'notes.txt', which is not of this output (--force removes what a loader "
        "would read of it)\n",
    )  # fmt: skip
    ran = fuse_here("merge", recipe, "s3://models/stopped", "--force")
    assert ran.code == 0, ran.err
    assert "notes.txt" in store.names("stopped") and not staged(tmp_path)


def test_staging_is_elsewhere_where_it_is_asked_for(store: Store, recipe: Path, tmp_path: Path) -> None:
    ran = fuse_here("merge", recipe, "s3://models/aside", "--staging", tmp_path / "none")
    assert (ran.code, ran.err) == (
        2, f"fuse: --staging: the folder '{tmp_path}/none' does not exist (make it first)\n",
    )  # fmt: skip
    (tmp_path / "stage").mkdir()
    ran = fuse_here("merge", recipe, "s3://models/aside", "--staging", tmp_path / "stage")
    assert ran.code == 0, ran.err
    assert not list((tmp_path / "stage").iterdir()) and "fuse.json" in store.names("aside")


def test_what_cannot_be_an_output(store: Store, recipe: Path, folders: Path, tmp_path: Path) -> None:
    one = store.put(folders / "one", "here/one")
    inside = tmp_path / "inside.yaml"
    inside.write_text(recipe.read_text().replace(str(folders / "one"), one))
    cases = [
        (recipe, ["s3://models"], "s3://models: the output would be a whole bucket (such as s3://models/folder)"),
        (recipe, ["s3://nowhere/out"], "s3://nowhere/out: the bucket 'nowhere' does not exist"),
        (recipe, ["s3://models/a//b"], "'s3://models/a//b' is no folder of a store (such as s3://bucket/folder)"),
        (recipe, ["s3://models/../b"], "'s3://models/../b' is no folder of a store (such as s3://bucket/folder)"),
        (inside, ["s3://models/here"], "s3://models/here: the output and the member one would lie in each other"),
        (inside, [one, "--force"], f"{one}: the output and the member one would lie in each other"),
        (recipe, ["s3://models/w", "--worker", "0/2"],
         "--worker writes into a folder that all workers see, not into a store"),
        (recipe, [tmp_path / "out", "--staging", tmp_path], "--staging is for an OUT in a store"),
    ]  # fmt: skip
    for file, told, said in cases:
        ran = fuse_here("merge", file, *told)
        assert (ran.code, ran.err) == (2, f"fuse: {said}\n"), told
    assert not staged(tmp_path)


def test_a_store_that_cannot_be_reached(
    store: Store, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    ran = fuse_here("merge", recipe, "s3://models/far")
    assert ran.code == 4
    assert ran.err == "fuse: s3://models/far: the store cannot be reached (EndpointConnectionError)\n"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    ran = fuse_here("merge", recipe, "s3://models/far")
    assert ran.code == 4
    assert ran.err == (
        "fuse: s3://models/far: no credentials for the store were found (set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY; of a public bucket FSSPEC_S3_ANON=true)\n"
    )
    assert not staged(tmp_path)


def test_a_connection_that_is_lost(store: Store, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs
    from botocore.exceptions import EndpointConnectionError

    put, times = s3fs.S3FileSystem.put_file, []

    def put_file(self: object, *args: object, **kwargs: object) -> object:
        times.append(args)
        if len(times) == 3:
            raise EndpointConnectionError(endpoint_url="http://127.0.0.1")
        return put(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "put_file", put_file)
    ran = fuse_here("merge", recipe, "s3://models/lost")
    (home,) = staged(tmp_path)
    files = len(list((home / "lost").iterdir()))
    assert (ran.code, ran.err) == (
        4, f"fuse: s3://models/lost: the store cannot be reached (EndpointConnectionError); 2 of {files} files are at "
        f"s3://models/lost, all are in {home}/lost: the same command goes on from there\n",
    )  # fmt: skip
    assert len(store.names("lost")) == 2
    ran = fuse_here("merge", recipe, "s3://models/lost")
    assert ran.code == 0 and len(times) == files + 1, ran.err


def test_another_writer_is_noticed_before_the_marker(
    store: Store, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    put = s3fs.S3FileSystem.put_file

    def put_file(self: object, here: str, there: str, **kwargs: object) -> object:
        if here.endswith("config.json"):
            store.write("both/model-00001-of-00003.safetensors", b"another's")
        return put(self, here, there, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "put_file", put_file)
    ran = fuse_here("merge", recipe, "s3://models/both")
    assert ran.code == 4
    assert ran.err.startswith(
        "fuse: s3://models/both/model-00001-of-00003.safetensors: the store does not have what was sent; "
    )
    assert "fuse.json" not in store.names("both")


def test_restart_throws_nothing_away_that_another_writes(store: Store, recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, "2", "merge", str(recipe), "s3://models/busy"]
    subprocess.run(command, env={**os.environ, **store.env}, capture_output=True, check=False)
    (home,) = staged(tmp_path)
    before = sorted(home.rglob("*"))
    for folder, name in ((home, "busy"), (home / ".busy.partial", "busy")):
        folder.mkdir(exist_ok=True)
        with closing(Journal(folder, home / name)):
            ran = fuse_here("merge", recipe, "s3://models/busy", "--restart")
            said = f"fuse: {home}/busy: another fuse is writing it"
            assert ran.code == 2 and ran.err.startswith(said) and set(before) <= set(home.rglob("*"))
    assert fuse_here("merge", recipe, "s3://models/busy", "--restart").code == 0 and not home.exists()
    assert store.names("busy")[0] == "README.md" and "fuse.json" in store.names("busy")


def test_restart_takes_back_what_was_sent_and_nothing_else(store: Store, recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, "2", "merge", str(recipe), "s3://models/back"]
    subprocess.run(command, env={**os.environ, **store.env}, capture_output=True, check=False)
    _, second = store.names("back")
    store.write(f"back/{second}", b"another's")
    ran = fuse_here("merge", recipe, "s3://models/back", "--restart")
    assert (ran.code, store.names("back")) == (2, [second])
    assert ran.err == "fuse: s3://models/back: the output already exists (choose another folder, or --force)\n"


def test_a_staging_folder_is_no_link(store: Store, recipe: Path, tmp_path: Path) -> None:
    home = staging_for(address_of("s3://models/linked"), tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    home.symlink_to("precious")
    for options in ([], ["--restart"]):
        ran = fuse_here("merge", recipe, "s3://models/linked", *options)
        assert (ran.code, ran.err) == (
            2,
            f"fuse: {home}: is in the way and fuse did not make it (remove it yourself)\n",
        )
    assert (tmp_path / "precious" / "file").read_text() == "precious"
