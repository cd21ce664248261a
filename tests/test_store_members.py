"""Members in an object store, against an S3 server on this machine."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from botocore.exceptions import EndpointConnectionError
from fsspec import AbstractFileSystem
from fsspec.registry import _registry
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fuse.anatomy import open_member
from fuse.digests import file_sha256
from fuse.engine.read import Reader
from fuse.errors import CheckpointError
from fuse.folder_headers import headers
from fuse.grafts.basis import host_of, likeness
from fuse.inputs import Input, check_unchanged
from fuse.plan import Source
from fuse.safetensors_header import TensorEntry, read_header, stamp
from fuse.stores import members
from fuse.stores.address import Address
from fuse.stores.listing import Far
from fuse.stores.sparse import close, joined, missing, note_of, pieces, prepare, present, put
from fuse.stores.turns import turn
from tests import recipe_members
from tests.cli import fuse_here
from tests.members import perturbed, save_member
from tests.store_server import Store

RECIPE = "members: {{one: {one}, two: {two}}}\nlanguage: {{method: linear, weights: {weights}}}\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one: a file of weights. two: shards, with a file of code and a pickle beside."""
    home = tmp_path_factory.mktemp("members")
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=64))
    save_member(model, home / "one")
    save_member(perturbed(model, 1), home / "two", max_shard_size="1MB")
    (home / "two" / "pytorch_model.bin").write_bytes(b"never read")
    (home / "two" / "modeling_evil.py").write_text("raise SystemExit")
    return home


def cached(tmp_path: Path, pattern: str) -> list[Path]:
    return sorted((tmp_path / "cache" / "fuse" / "stores").rglob(pattern))


def test_plan_reads_headers_and_merge_fetches_the_weights(store: Store, folders: Path, tmp_path: Path) -> None:
    one, two = store.put(folders / "one", "a/one"), store.put(folders / "two", "a/two")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(one=one, two=two, weights=0.5))
    ran = fuse_here("plan", recipe)
    assert ran.code == 0, ran.err
    assert f"  one: {one} @ " in ran.out
    assert not cached(tmp_path, "model*.safetensors")
    assert not cached(tmp_path, "*.bin") and not cached(tmp_path, "*.py")
    ran = fuse_here("merge", recipe, tmp_path / "out")
    assert ran.code == 0, ran.err
    merged, first = load_file(tmp_path / "out" / "model.safetensors"), load_file(folders / "one" / "model.safetensors")
    second = {k: v for p in (folders / "two").glob("*.safetensors") for k, v in load_file(p).items()}
    assert all(torch.allclose(tensor, (first[name] + second[name]) / 2, atol=1e-7) for name, tensor in merged.items())
    told = json.loads((tmp_path / "out" / "fuse.json").read_text())["members"]["one"]
    assert told["origin"] == one and len(told["revision"]) == 40
    assert not cached(tmp_path, ".*.ranges"), "a file that was fetched whole is whole"


def test_only_what_the_plan_reads_is_fetched(store: Store, folders: Path, tmp_path: Path) -> None:
    """Of two members' layers one each; what is fetched for one plan is not fetched again for another."""
    one, two = store.put(folders / "one", "b/one"), store.put(folders / "two", "b/two")
    recipe = tmp_path / "recipe.yaml"
    layers = "language: {method: passthrough, layers: [{one: [0, 1]}, {two: [1, 2]}]}\n"
    recipe.write_text(f"members: {{one: {one}, two: {two}}}\n{layers}")
    ran = fuse_here("merge", recipe, tmp_path / "out")
    assert ran.code == 0, ran.err
    merged, first = load_file(tmp_path / "out" / "model.safetensors"), load_file(folders / "one" / "model.safetensors")
    second = {k: v for p in (folders / "two").glob("*.safetensors") for k, v in load_file(p).items()}
    for name, tensor in merged.items():
        wanted = first[name] if name.startswith(("model.layers.0", "model.embed")) else second[name]
        assert torch.equal(tensor, wanted), name
    (sparse,) = cached(tmp_path, "b/one@*/model.safetensors")
    size = (folders / "one" / "model.safetensors").stat().st_size
    assert sparse.stat().st_size == size and sparse.stat().st_blocks * 512 < 0.7 * size
    told = json.loads((tmp_path / "out" / "fuse.json").read_text())["members"]
    assert told["one"]["sha256"] == {"model.safetensors": ""}, "what is here in part has no sha256"
    etag = store.client.head_object(Bucket="models", Key="b/one/model.safetensors")["ETag"].strip('"')
    assert told["one"]["etag"] == {"model.safetensors": etag}
    assert set(told["two"]["etag"]) == set(told["two"]["sha256"]) == {
        p.name for p in (folders / "two").glob("*.safetensors")
    }  # fmt: skip
    noted = present(sparse)
    assert noted
    recipe.write_text(RECIPE.format(one=one, two=two, weights=0.5))
    again = fuse_here("merge", recipe, tmp_path / "whole")
    assert again.code == 0, again.err
    assert load_file(tmp_path / "whole" / "model.safetensors").keys() == first.keys()
    assert present(sparse) is None and sparse.read_bytes() == (folders / "one" / "model.safetensors").read_bytes()


def test_a_licence_file_is_fetched(store: Store, folders: Path, tmp_path: Path) -> None:
    one = store.put(folders / "one", "l/one")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"members: {{one: {one}}}\nlanguage: {{method: passthrough}}\n")
    assert "apache-2.0" not in fuse_here("plan", recipe).out
    store.write("l/one/LICENSE.md", b"# Apache License\n\nVersion 2.0, January 2004\n")
    assert "\n  one: apache-2.0 (" in fuse_here("plan", recipe).out


def test_workers_have_caches_of_their_own(
    store: Store, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member in a store is the same one for every machine, whatever its copy there is called."""
    one, two = store.put(folders / "one", "h/one"), store.put(folders / "two", "h/two")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE.format(one=one, two=two, weights=0.5) + "output: {shard_size: 1MB}\n")
    for number in range(2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"node{number}"))
        ran = fuse_here("merge", recipe, out, "--worker", f"{number}/2")
        assert ran.code == 0, ran.err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node2"))
    ran = fuse_here("commit", recipe, out)
    assert ran.code == 0, ran.err
    sums = json.loads((out / "fuse.json").read_text())["members"]["one"]["sha256"]
    assert sums == {"model.safetensors": file_sha256(folders / "one" / "model.safetensors")}
    assert fuse_here("merge", recipe, tmp_path / "again", "--worker", "0/2").code == 0
    store.write(
        "h/one/model.safetensors", (folders / "one" / "model.safetensors").read_bytes()[:-1] + b"@"
    )  # 1.0 ends with "?"
    assert fuse_here("merge", recipe, tmp_path / "again", "--worker", "1/2").code == 0
    ran = fuse_here("commit", recipe, tmp_path / "again")
    assert ran.code == 2 and "holds an unfinished merge of " in ran.err


def test_what_is_not_there_or_changes(
    store: Store, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store.put(folders / "one", "c/one")
    recipe = tmp_path / "recipe.yaml"

    def plan(where: str) -> tuple[int, str]:
        recipe.write_text(f"members: {{one: {where}}}\nlanguage: {{method: passthrough}}\n")
        ran = fuse_here("plan", recipe)
        return ran.code, ran.err.replace(str(recipe), "recipe.yaml")

    at = "fuse: recipe.yaml:1:11: members.one: "
    nothing = "there is no such folder in the store"
    assert plan("s3://models/none") == (2, f"{at}{nothing}\n")
    assert plan("s3://nowhere/x") == (2, f"{at}the bucket 'nowhere' does not exist\n")
    odd = "is no folder of a store (such as s3://bucket/folder)"
    for where in ("s3://models//x", "s3://", "s3://models/../x", "s3://models/a?b", "s3://a::file:///etc"):
        assert plan(where) == (2, f"{at}'{where}' {odd}\n")
    store.write("c/pickles/pytorch_model.bin", b"never read")
    store.write("c/pickles/config.json", (folders / "one" / "config.json").read_bytes())
    code, said = plan("s3://models/c/pickles")
    assert code == 3 and "holds pytorch_model.bin but no safetensors" in said
    state = "another state than revision 0123456"
    code, said = plan(f"{{path: {one}, revision: '0123456'}}")
    assert code == 3 and f"fuse: {one}: is in {state}: it is " in said
    pinned = said.split("it is ")[1][:40]
    assert plan(f"{{path: {one}, revision: {pinned}}}") == (0, "")
    store.write("c/one/generation_config.json", b"{}")
    code, said = plan(f"{{path: {one}, revision: {pinned}}}")
    assert code == 3 and f"is in another state than revision {pinned}" in said


def test_weights_that_change_while_they_are_fetched(
    store: Store, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's state, or nothing: and nothing of the other state is kept."""
    one = store.put(folders / "one", "d/one")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"members: {{one: {one}}}\nlanguage: {{method: passthrough}}\n")
    fill = members.sparse.fill

    def changing(file: Path, wanted: list[tuple[int, int]], get: object, progress: object) -> None:
        data = bytearray((folders / "one" / "model.safetensors").read_bytes())
        data[-1] ^= 1
        store.write("d/one/model.safetensors", bytes(data))
        fill(file, wanted, get, progress)

    monkeypatch.setattr(members.sparse, "fill", changing)
    ran = fuse_here("merge", recipe, tmp_path / "out")
    assert (ran.code, ran.err) == (
        3, f"fuse: {one}/model.safetensors: the file changed in the store while it was read\n",
    )  # fmt: skip
    assert not (tmp_path / "out").exists() and not cached(tmp_path, "model.safetensors")
    monkeypatch.setattr(members.sparse, "fill", fill)
    assert fuse_here("merge", recipe, tmp_path / "out").code == 0


def test_a_fetch_that_was_cut_off_goes_on(
    store: Store, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store.put(folders / "one", "e/one")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"members: {{one: {one}}}\nlanguage: {{method: passthrough}}\n")
    monkeypatch.setattr(members.sparse, "PIECE", 1 << 18)
    monkeypatch.setattr(members.sparse, "THREADS", 1)
    put, came = members.sparse.put, []

    def until_cut_off(file: Path, begin: int, data: bytes) -> None:
        if len(came) == 3:
            raise KeyboardInterrupt
        came.append((begin, begin + len(data)))
        put(file, begin, data)

    monkeypatch.setattr(members.sparse, "put", until_cut_off)
    assert fuse_here("merge", recipe, tmp_path / "out").code == 130
    (file,) = cached(tmp_path, "model.safetensors")
    first = present(file)
    assert first and not missing(first, came)
    came.clear()
    with note_of(file).open("a") as note:
        note.write("\n123 4")  # as a killed run may leave it
    monkeypatch.setattr(
        members.sparse, "put", lambda *what: (came.append((what[1], what[1] + len(what[2]))), put(*what))
    )
    ran = fuse_here("merge", recipe, tmp_path / "out")
    assert ran.code == 0, ran.err
    assert came and all(missing(first, [piece]) for piece in came), "what was there was not fetched again"
    wanted = load_file(folders / "one" / "model.safetensors")
    assert all(torch.equal(t, wanted[n]) for n, t in load_file(tmp_path / "out" / "model.safetensors").items())


def test_holes_are_never_read_as_zeros(folders: Path, tmp_path: Path) -> None:
    entries = read_header(folders / "one" / "model.safetensors")
    file = tmp_path / "model.safetensors"
    size = (folders / "one" / "model.safetensors").stat().st_size
    prepare(file, size)
    entry = replace(next(iter(entries.values())), file=file)
    with Reader() as reader, pytest.raises(CheckpointError, match=r"bytes [\d,]+ to [\d,]+ were not fetched"):
        reader.tensor(Source("one", entry))


class Slow:
    """A store with one file, which counts what it sends."""

    def __init__(self, data: bytes) -> None:
        self.data, self.sent = data, []

    def open(self, *_: object, **__: object) -> "Slow":
        opened = Slow(self.data)
        opened.sent = self.sent
        return opened

    def seek(self, place: int) -> None:
        self.place = place

    def read(self, count: int) -> bytes:
        time.sleep(0.02)
        self.sent.append(count)
        return self.data[self.place : self.place + count]


def shared(folders: Path, cache: Path) -> tuple[members.StoreFolder, list[TensorEntry], Slow]:
    """A folder of a store at a cache, with its header here."""
    name, cache = "model.safetensors", cache / "shared"
    cache.mkdir()
    system = Slow((folders / "one" / name).read_bytes())
    far = members.StoreFolder(
        Address("s3", ("models", "one")), "c", {name: Far(len(system.data), "e")}, cache, system, pinned=True
    )
    entries = list(far.header(name, cache / name).values())
    system.sent.clear()
    return far, entries, system


def test_runs_that_share_a_cache_take_turns(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one fetches the other does not, and neither makes holes of what is whole."""
    monkeypatch.setattr(members.sparse, "PIECE", 1 << 18)
    far, entries, system = shared(folders, tmp_path)
    runs = [Thread(target=far.fetch, args=(some,)) for some in (entries, entries[1:])]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    file = far.folder / "model.safetensors"
    assert sum(system.sent) == len(system.data) - entries[0].begin
    assert file.read_bytes() == system.data and present(file) is None


def test_what_is_there_is_read_while_another_run_fetches(folders: Path, tmp_path: Path) -> None:
    far, entries, system = shared(folders, tmp_path)
    far.fetch(entries[:1])
    system.sent.clear()
    with turn(far.folder / "model.safetensors"):
        far.fetch(entries[:1])
    assert not system.sent


def test_a_file_that_another_run_found_changed(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    far, entries, _ = shared(folders, tmp_path)

    @contextmanager
    def after_the_other(file: Path) -> Iterator[None]:
        file.with_name(f".{file.name}.header").unlink()
        yield

    monkeypatch.setattr(members, "turn", after_the_other)
    told = r"s3://models/one/model\.safetensors: the file changed in the store while it was read"
    with pytest.raises(CheckpointError, match=f"^{told}$"):
        far.fetch(entries)
    assert not (far.folder / "model.safetensors").exists()


def test_a_note_says_no_more_than_is_there(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert prepare(file, 8) == []
    put(file, 0, b"12345678")
    close(file, 8)
    put(file, 4, b"5678")  # of a run that does not know that the file is whole
    assert present(file) is None and file.read_bytes() == b"12345678"
    note_of(file).write_text("\n0 8;")  # of a file that was removed
    file.unlink()
    assert prepare(file, 8) == []


def test_another_run_may_add_to_a_copy(tmp_path: Path) -> None:
    """While its bytes arrive the copy's time is another; a file in its place is noticed."""
    file = tmp_path / "model.safetensors"
    prepare(file, 8)
    seen = stamp(file.stat())
    inputs = {"one": {file: Input("s3://models/one", (8, "e"), seen, far=True)}}
    with file.open("r+b") as opened:
        opened.write(b"1234")
    assert stamp(file.stat())[2] != seen[2]
    check_unchanged(inputs)
    file.rename(tmp_path / "old")
    prepare(file, 8)
    with pytest.raises(CheckpointError, match="the file changed while it was read"):
        check_unchanged(inputs)


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: (pair[0], sum(pair))), max_size=8)


@given(ranges, ranges)
def test_missing_is_what_is_wanted_and_not_there(there: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    def bytes_of(some: list[tuple[int, int]]) -> set[int]:
        return {at for begin, end in some for at in range(begin, end)}

    found = missing(joined(there), wanted)
    assert bytes_of(found) == bytes_of(wanted) - bytes_of(there)
    assert bytes_of(joined(there)) == bytes_of(there)
    assert bytes_of(pieces(found)) >= bytes_of(found)


def test_a_client_that_does_not_start(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """adlfs looks for an account as it is made."""

    class Accountless(AbstractFileSystem):
        def __init__(self, **_: object) -> None:
            raise ValueError("unable to connect to account for Must provide either a connection_string!!")

    monkeypatch.setitem(_registry, "az", Accountless)
    told = (
        "the client of the store does not start (unable to connect to account for Must provide either a "
        "connection_string!!) (set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and "
        "AZURE_STORAGE_ACCOUNT_KEY)"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("members: {one: az://models/one}\nlanguage: {method: passthrough}\n")
    ran = fuse_here("plan", recipe)
    assert (ran.code, ran.err) == (4, f"fuse: az://models/one: {told}\n")
    recipe.write_text(f"members: {{one: {folders / 'one'}}}\nlanguage: {{method: passthrough}}\n")
    ran = fuse_here("merge", recipe, "az://models/out")
    assert (ran.code, ran.err) == (4, f"fuse: az://models/out: {told}\n")


def test_the_memory_of_a_process_is_no_store(folders: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("members: {one: memory://models/one}\nlanguage: {method: passthrough}\n")
    ran = fuse_here("plan", recipe)
    nothing = "'memory://models/one' does not exist (a folder, relative to the recipe, or a hub id org/name)"
    assert (ran.code, ran.err) == (2, f"fuse: recipe.yaml:1:11: members.one: {nothing}\n")
    recipe.write_text(f"members: {{one: {folders / 'one'}}}\nlanguage: {{method: passthrough}}\n")
    ran = fuse_here("merge", recipe, "memory://models/out")
    nothing = "memory:/models/out: the folder 'memory:/models' does not exist (make it first)"
    assert (ran.code, ran.err) == (2, f"fuse: {nothing}\n")


def test_a_basis_is_compared_by_rows(store: Store, folders: Path, tmp_path: Path) -> None:
    """A graft's verdict needs some rows of the host's embedding, before any merge."""
    here = open_member("here", str(folders / "one"), revision=None, relative_to=tmp_path)
    record = host_of(here)
    far = open_member("far", store.put(folders / "one", "g/one"), revision=None, relative_to=tmp_path)
    assert likeness(record["embedding"], far)[0] == pytest.approx(1)
    (file,) = cached(tmp_path, "model.safetensors")
    assert file.stat().st_blocks * 512 < 0.3 * file.stat().st_size


def test_a_connection_that_is_lost(
    store: Store, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store.put(folders / "one", "f/one")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"members: {{one: {one}}}\nlanguage: {{method: passthrough}}\n")
    fill = members.sparse.fill

    def lost(*_: object) -> None:
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1")

    monkeypatch.setattr(members.sparse, "fill", lambda file, wanted, get, progress: fill(file, wanted, lost, progress))
    ran = fuse_here("merge", recipe, tmp_path / "out")
    assert (ran.code, ran.err) == (
        4, f"fuse: {one}: the store cannot be reached (EndpointConnectionError); what was fetched is kept: the same "
        "command goes on from there\n",
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "recipe.yaml"]


def test_headers_are_fetched_several_at_a_time(folders: Path, tmp_path: Path) -> None:
    """And the first that is wrong, in the order of names, is told."""
    barrier, files = Barrier(4, timeout=30), [f"model-{n}.safetensors" for n in range(8)]

    class Far:
        commit, names, etags = "c", frozenset(files), {"model-0.safetensors": "e"}

        def header(self, name: str, path: Path) -> dict[str, TensorEntry]:
            barrier.wait()  # which opens for four at once
            if name >= "model-6":
                raise CheckpointError("is broken", where=path)
            return read_header(folders / "one" / "model.safetensors")

        def fetch(self, entries: Sequence[TensorEntry]) -> None: ...

    with pytest.raises(CheckpointError, match=r"model-6\.safetensors: is broken"):
        list(headers(tmp_path, files, Far()))
    assert [name for name, _ in headers(tmp_path, files[:4], Far())] == files[:4]


def test_a_config_cannot_name_a_store(store: Store, tmp_path: Path) -> None:
    """Only a recipe sends fuse, and the credentials it finds, to a store."""
    original = recipe_members.save("mgm", tmp_path / "mgm", 0)
    config = json.loads((original / "config.json").read_text())
    config["mm_vision_tower"] = "s3://models/tower"
    (original / "config.json").write_text(json.dumps(config))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"members: {{one: {original}}}\nlanguage: {{method: passthrough}}\nvision: [one]\noutput: {{model: fuse}}\n"
    )
    ran = fuse_here("plan", recipe)
    assert (
        ran.code == 3
        and "mm_vision_tower is 's3://models/tower', and only a recipe may name an object store" in ran.err
    )


def test_reading_a_store_needs_no_torch() -> None:
    told = "import sys, fuse.stores.members, fuse.stores.hub, s3fs, huggingface_hub.hf_file_system; "
    told += "print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
