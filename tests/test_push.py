"""`fuse push`, against a hub on this machine that takes uploads as the real one does."""

import hashlib
import io
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from fuse.digests import file_sha256
from fuse.errors import MachineError
from fuse.push.run import prepare, send
from tests import sessions, tiny_text
from tests.cli import Ran, fuse, fuse_here
from tests.members import TEMPLATE, perturbed, save_member
from tests.push_server import READER, TOKEN, Blob, Hub, Repository, hub_server
from tests.test_export_gguf import FAKE

CARD = "---\nlicense: {}\n---\n\n# A model\n"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two fine-tunes whose cards state one licence, in two files of weights."""
    root = tmp_path_factory.mktemp("push")
    model = tiny_text.build("llama")
    for name, seed in (("a", 1), ("b", 2)):
        save_member(perturbed(model, seed), root / name, template=TEMPLATE)
        (root / name / "README.md").write_text(CARD.format("apache-2.0"))
    (root / "recipe.yaml").write_text(
        "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\noutput: {shard_size: 40KB}\n"
    )
    ran = fuse_here("merge", root / "recipe.yaml", root / "out")
    assert ran.code == 0, ran.err
    return root / "out"


@pytest.fixture
def out(merged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged, tmp_path / "out"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that this process talks to, without Xet."""
    with hub_server(tmp_path / "storage") as hub:
        for name, value in hub.env(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def push(*args: object) -> Ran:
    return fuse_here("push", *args)


def same(hub: Hub, repository: str, folder: Path, revision: str = "main") -> None:
    """Every byte of the folder is on the hub, and nothing else."""
    files = hub.files(repository, revision)
    assert sorted(files) == names(folder)
    for name, blob in files.items():
        assert blob.data == (folder / name).read_bytes(), name


def in_a_terminal(said: str, env: dict[str, str], *args: object) -> Ran:
    """The command in a process of its own, whose input is a terminal where somebody says that."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fuse", *map(str, args)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    ) as process:  # fmt: skip
        os.close(theirs)
        os.write(ours, said.encode())
        told, asked = process.communicate(timeout=240)
    os.close(ours)
    return Ran(process.returncode, told, asked)


def test_every_byte_arrives_and_the_folder_stays_as_it_is(out: Path, tmp_path: Path) -> None:
    """As a user runs it, who is asked."""
    before = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    with hub_server(tmp_path / "storage") as hub:
        ran = in_a_terminal("y\n", hub.env(tmp_path / "home"), "push", out, "me/my-model")
        assert (ran.code, ran.err) == (0, "Send it? [y/N]: "), ran
        same(hub, "me/my-model", out)
        assert hub.files("me/my-model")["model-00001-of-00003.safetensors"].lfs
        commit = hub.repositories["me/my-model"].branches["main"]
    told, head = ran.out.splitlines(), f"files ({len(before)}, "
    assert told[0].startswith(head) and "  model-00001-of-00003.safetensors  " in ran.out
    assert told[-5:] == [
        "licences, as the parents state them", "  a, b: apache-2.0 (its notices are kept)",
        "  = the output's card says apache-2.0, as every parent does",
        "to me/my-model, branch main: a public repository that will be made",
        f"{hub.url}/me/my-model/commit/{commit}: {len(before)} files sent, {len(before)} there as in {out}",
    ]  # fmt: skip
    assert {name: (out / name).stat().st_mtime_ns for name in names(out)} == before
    assert fuse_here("verify", out, "--no-load").code == 0


def test_through_xet(out: Path, tmp_path: Path) -> None:
    """As the hub keeps large files today: hf_xet cuts and sends them, here to its storage on disk."""
    pytest.importorskip("hf_xet", reason="hf_xet is not installed")
    (tmp_path / "storage").mkdir()
    with hub_server(tmp_path / "storage") as hub:
        ran = fuse("push", out, "me/my-model", "--yes", "--json", env=hub.env(tmp_path / "home", xet=True))
        assert ran.code == 0, ran
        files = hub.files("me/my-model")
        assert not [line for line in hub.asked if "/lfs/" in line]
    assert {name: blob.sha256 for name, blob in files.items()} == {name: file_sha256(out / name) for name in names(out)}
    assert all(blob.data is None for blob in files.values() if blob.lfs)
    kept = sum(path.stat().st_size for path in (tmp_path / "storage").rglob("*") if path.is_file())
    assert kept > sum(blob.size for blob in files.values() if blob.lfs) / 2
    told = json.loads(ran.out)
    assert sorted(told["sent"]) == names(out) and told["commit"] and told["licences"]["agreed"] == "apache-2.0"


def test_a_second_time_nothing_is_sent(out: Path, hub: Hub) -> None:
    assert push(out, "me/x", "--yes", "--private").code == 0
    assert hub.repositories["me/x"].private
    hub.asked.clear()
    ran = push(out, "me/x", "--yes")
    assert (ran.code, ran.out, ran.err) == (0, f"me/x has all of {out} as it is; nothing was sent\n", "")
    assert hub.asked == ["GET /api/models/me/x"]


def test_what_is_hidden_or_not_of_the_model_stays_here(out: Path, hub: Hub) -> None:
    (out / ".DS_Store").write_text("x")
    (out / ".cache").mkdir()
    (out / ".cache" / "a").write_text("x")
    (out / "LICENSE").write_text("Apache License")
    (out / "photo[1].png").write_bytes(b"png")
    ran = push(out, "me/x", "--yes")
    assert ran.code == 0, ran
    assert "left here\n  .DS_Store  (hidden)\n  .cache/a  (hidden)\n" in ran.out
    assert set(names(out)) - set(hub.files("me/x")) == {".DS_Store", ".cache/a"}
    assert hub.files("me/x")["photo[1].png"].data == b"png"


@pytest.mark.parametrize("name", [".env", ".git/config", "branches/.token"])
@pytest.mark.parametrize("table", ["files", "sha256", "code"])
def test_what_is_hidden_never_leaves(name: str, table: str, out: Path, hub: Hub) -> None:
    """Even where fuse.json records it."""
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("HF_TOKEN=hf_SECRET")
    record = json.loads((out / "fuse.json").read_text())
    record.setdefault(table, {})[name] = file_sha256(out / name)
    (out / "fuse.json").write_text(json.dumps(record))
    for more in ("--yes", "--dry-run"):
        ran = push(out, "me/x", more, "--force")
        assert (ran.code, ran.out, ran.err) == (3, "", (
            f"fuse: {out}/{name}: is hidden, and fuse.json records it: hidden files are not sent (make the folder again "
            "without it, or take its line out of fuse.json)\n"
        ))  # fmt: skip
    assert hub.asked == []
    del record[table][name]
    (out / "fuse.json").write_text(json.dumps(record))
    assert push(out, "me/x", "--yes").code == 0
    assert set(names(out)) - set(hub.files("me/x")) == {name}


def test_dry_run_asks_nothing_of_anybody(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ran = push(out, "me/x", "--dry-run", "--all")
    assert (ran.code, ran.err, hub.asked) == (0, "", [])
    assert [line.split()[0] for line in ran.out.splitlines() if line.startswith("  ")][:-2] == names(out)
    told = json.loads(push(out, "me/x", "--dry-run", "--json").out)
    assert [file["name"] for file in told["files"]] == names(out) and told["sent"] == [] and hub.asked == []
    assert told["bytes"] == sum((out / name).stat().st_size for name in names(out))
    assert all(file["sha256"] == file_sha256(out / file["name"]) for file in told["files"])


def test_a_repository_that_holds_something_else(out: Path, hub: Hub) -> None:
    hub.make("me/x", {"README.md": b"# Mine", "old.safetensors": b"old", "branches/a.json": b"{}"})
    ran = push(out, "me/x", "--yes")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "fuse: me/x: holds 'README.md' otherwise than the folder, and 2 more that differ (another repository, or --force, "
        "which makes it as the folder is)\n"
    )
    ran = push(out, "me/x", "--yes", "--force")
    assert ran.code == 0, ran
    assert "  ! replaces 1 file: README.md\n  ! takes out 2 files: branches/a.json, old.safetensors\n" in ran.out
    same(hub, "me/x", out)
    hub.make("me/y", {"old.safetensors": b"old"})
    assert push(out, "me/y", "--yes").err == (
        "fuse: me/y: holds 'old.safetensors' which is not of the folder (another repository, or --force, which makes it as "
        "the folder is)\n"
    )


def test_names_on_the_hub_drive_no_terminal(out: Path, hub: Hub) -> None:
    hub.make("me/x", {"\x1b[31mred": b"x", "a\nb": b"x"})
    ran = push(out, "me/x", "--yes")
    assert ran.code == 2 and "holds '\\x1b[31mred' which is not of the folder, and 1 more that differs (" in ran.err
    ran = push(out, "me/x", "--yes", "--force")
    assert ran.code == 0 and "  ! takes out 2 files: \\x1b[31mred, a\\nb\n" in ran.out
    same(hub, "me/x", out)


def test_a_branch_of_its_own(out: Path, hub: Hub) -> None:
    hub.make("me/x")
    ran = push(out, "me/x", "--yes", "--revision", "v2")
    target = "to me/x, branch v2: a public repository that is there, a branch that will be made\n"
    assert ran.code == 0 and target in ran.out
    same(hub, "me/x", out, "v2")
    assert not hub.files("me/x")
    assert push(out, "me/new", "--yes", "--revision", "v1").code == 0
    same(hub, "me/new", out, "v1")


def test_a_new_branch_begins_with_nothing_else(out: Path, hub: Hub) -> None:
    """The hub begins a branch with what `main` holds."""
    held = hub.make("me/x", {"README.md": b"# Mine", "old.safetensors": b"old"})
    before = dict(hub.files("me/x"))
    ran = push(out, "me/x", "--yes", "--revision", "v2")
    assert (ran.code, ran.out, ran.err) == (2, "", (
        "fuse: me/x: holds 'README.md' otherwise than the folder, and 1 more that differs, and a new branch begins with that "
        "(another repository, or --force, which makes the new branch as the folder is, and no other)\n"
    ))  # fmt: skip
    assert list(held.branches) == ["main"]
    ran = push(out, "me/x", "--yes", "--revision", "v2", "--force")
    assert ran.code == 0, ran
    assert "made\n  ! replaces 1 file: README.md\n  ! takes out 1 file: old.safetensors\n" in ran.out
    same(hub, "me/x", out, "v2")
    assert hub.files("me/x") == before


def test_a_new_branch_of_what_main_holds(out: Path, hub: Hub) -> None:
    assert push(out, "me/x", "--yes").code == 0
    commit = hub.repositories["me/x"].branches["main"]
    ran = push(out, "me/x", "--yes", "--quiet", "--revision", "v2")
    told = f"{hub.url}/me/x/commit/{commit}: 0 files sent, {len(names(out))} there as in {out}\n"
    assert (ran.code, ran.out) == (0, told)
    same(hub, "me/x", out, "v2")


def test_main_moves_before_a_branch_is_made_of_it(out: Path, hub: Hub) -> None:
    """The branch begins with the commit that was looked at, and gets the files only where it is still there."""
    held = hub.make("me/x")
    ready = prepare(out, "me/x", revision="v2")
    held.commit("main", {"old.safetensors": Blob(3, "", b"old")})
    send(ready, private=False)
    same(hub, "me/x", out, "v2")
    ready = prepare(out, "me/x", revision="v3", force=True)
    held.branches["v3"] = held.commit("other", {})
    with pytest.raises(MachineError, match=re.escape("me/x: the repository changed meanwhile (")):
        send(ready, private=False)
    assert not hub.files("me/x", "v3")


def test_what_somebody_else_writes_meanwhile(out: Path, hub: Hub) -> None:
    hub.beside = ("config.old.json",)
    ran = push(out, "me/x", "--yes", "--quiet")
    assert (ran.code, ran.out, ran.err) == (4, "", (
        "fuse: me/x: holds 'config.old.json' beside what was sent (somebody wrote there meanwhile: look at it, and push "
        "again)\n"
    ))  # fmt: skip
    hub.fails["POST /api/repos/create"] = 409
    ran = push(out, "me/y", "--yes", "--quiet", "--private")
    assert (ran.code, ran.err) == (
        4, "fuse: me/y: somebody else writes there (not now) (look at it, and push again)\n")  # fmt: skip
    assert list(hub.repositories) == ["me/x"]


def test_private_is_no_wish(out: Path, hub: Hub) -> None:
    """What others may read gets nothing that was to be private, whatever else is said."""
    told = ", and --private makes only a new repository private (make it private on the hub, or leave --private out)\n"
    hub.make("me/x")
    for more in ((), ("--force",), ("--revision", "v2")):
        ran = push(out, "me/x", "--yes", "--private", *more)
        assert (ran.code, ran.out, ran.err) == (2, "", f"fuse: me/x: is public{told}")
    hub.repositories["me/none"] = Repository(False)  # no commit yet
    ran = push(out, "me/none", "--yes", "--private")
    assert (ran.code, ran.err) == (2, f"fuse: me/none: may be public: the hub does not say{told}")
    assert not hub.files("me/x") and not hub.files("me/none")
    ran = push(out, "me/none", "--yes")
    assert ran.code == 0 and "to me/none, branch main: a repository that is there\n" in ran.out
    hub.make("me/hidden", private=True)
    ran = push(out, "me/hidden", "--yes", "--private")
    assert ran.code == 0 and "to me/hidden, branch main: a private repository that is there\n" in ran.out
    same(hub, "me/hidden", out)


def test_a_folder_of_ggufs(merged: Path, hub: Hub, tmp_path: Path) -> None:
    """As `fuse export --to gguf` writes it, with the converter of its tests."""
    (tmp_path / "convert.py").write_text(f"FAILS = {{}}\n{FAKE}")
    by = ("--converter", tmp_path / "convert.py", "--python", sys.executable)
    assert fuse_here("export", merged, "--to", "gguf", tmp_path / "out", *by).code == 0
    ran = push(tmp_path / "out", "me/my-model-GGUF", "--yes")
    assert (ran.code, ran.err) == (0, "")
    assert "  a, b: apache-2.0 (its notices are kept)\n" in ran.out
    same(hub, "me/my-model-GGUF", tmp_path / "out")
    assert hub.files("me/my-model-GGUF")["model-F16.gguf"].lfs
    data = (tmp_path / "out" / "model-F16.gguf").read_bytes()
    (tmp_path / "out" / "model-F16.gguf").write_bytes(data[:-1] + b"?")
    ran = push(tmp_path / "out", "me/x", "--yes", "--quiet")
    told = f"fuse: {tmp_path}/out/model-F16.gguf: is not as fuse.json records it\n"
    assert (ran.code, ran.err, list(hub.repositories)) == (3, told, ["me/my-model-GGUF"])


def test_a_push_that_broke_goes_on(out: Path, hub: Hub) -> None:
    hub.fails["POST /api/models/me/x/commit/main"] = 500
    ran = push(out, "me/x", "--yes", "--quiet")
    assert (ran.code, ran.err) == (4, "fuse: me/x: the hub answers 500 (not now) (try again later)\n")
    assert not hub.files("me/x")
    hub.asked.clear()
    assert push(out, "me/x", "--yes", "--quiet").code == 0
    same(hub, "me/x", out)
    assert not [line for line in hub.asked if line.startswith("PUT /storage")]


def changed(out: Path) -> None:
    file = out / "model-00002-of-00003.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def half_written(out: Path) -> None:
    (out / "model-00001-of-00003.safetensors.incomplete").write_text("x")


def code_added(out: Path) -> None:
    (out / "modeling.py").write_text("print()")


def no_record(out: Path) -> None:
    (out / "fuse.json").unlink()


def config_changed(out: Path) -> None:
    (out / "generation_config.json").write_text("{}")


def shard_lost(out: Path) -> None:
    (out / "model-00003-of-00003.safetensors").unlink()


DAMAGED: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "a bit of a tensor": (
        changed, 3, "model-00002-of-00003.safetensors: is not as fuse.json records it: tensor "
        "'model.layers.1.self_attn.q_proj.weight' differs",
    ),
    "a half-written file": (
        half_written, 3,
        "model-00001-of-00003.safetensors.incomplete: is half-written (remove it, or make the folder again)",
    ),
    "code": (
        code_added, 3,
        "modeling.py: is code that fuse.json does not record (do not load this folder with trust_remote_code)",
    ),
    "no record": (
        no_record, 2, "has no fuse.json, so there is nothing to compare it with (fuse pushes what `fuse merge` and "
        "`fuse export` wrote)",
    ),
    "another config": (config_changed, 3, "generation_config.json: is not as fuse.json records it"),
    "a shard": (shard_lost, 3, "model-00003-of-00003.safetensors: is missing, and fuse.json records it"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_folder_that_is_not_as_it_was_is_not_sent(case: str, out: Path, hub: Hub) -> None:
    damage, code, told = DAMAGED[case]
    damage(out)
    ran = push(out, "me/x", "--yes", "--quiet")
    where = f"{out}: " if case == "no record" else f"{out}/"
    assert (ran.code, ran.out, ran.err) == (code, "", f"fuse: {where}{told}\n")
    assert not hub.repositories and not [line for line in hub.asked if not line.startswith("GET")]


@pytest.mark.parametrize(
    ("repository", "told"),
    [
        ("x", "'x' is no repository of the hub (org/name, such as me/my-model)"),
        ("a/b/c", "'a/b/c' is no repository of the hub (org/name, such as me/my-model)"),
        ("me/../x", "'me/../x' is no repository of the hub (org/name, such as me/my-model)"),
        ("me/a--b", "'me/a--b' is no repository of the hub (org/name, such as me/my-model)"),
        ("hf://me/x", "'hf://me/x' is no repository of the hub (org/name, such as me/my-model)"),
    ],
)
def test_names_that_are_none(repository: str, told: str, out: Path, hub: Hub) -> None:
    ran = push(out, repository, "--yes")
    assert (ran.code, ran.err, hub.asked) == (2, f"fuse: {told}\n", [])


LOGIN = "(`hf auth login`, or HF_TOKEN, with a token that may write)"


def test_tokens(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    ran = push(out, "me/x", "--yes", "--quiet")
    assert (ran.code, ran.err) == (
        4, f"fuse: me/x: the hub does not accept the token (Invalid username or password.) {LOGIN}\n")  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", READER)
    ran = push(out, "me/x", "--yes", "--quiet")
    assert (ran.code, ran.err) == (
        4, f"fuse: me/x: the token may not write here (you only have read access) {LOGIN}\n")  # fmt: skip
    assert not hub.repositories
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert push(out, "me/x", "--yes").err == f"fuse: me/x: there is no token for the hub {LOGIN}\n"


def test_offline_and_out_of_reach(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    ran = push(out, "me/x", "--yes")
    assert (ran.code, ran.err) == (
        4, "fuse: me/x: the hub cannot be reached (ConnectError) (the same command goes on from there)\n")  # fmt: skip
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    ran = push(out, "me/x", "--yes")
    assert (ran.code, ran.err) == (4, "fuse: HF_HUB_OFFLINE is set, so nothing may be sent (unset it)\n")


def test_a_card_that_the_hub_refuses(out: Path, hub: Hub) -> None:
    (out / "README.md").write_text(CARD.format("not-a-licence"))
    ran = push(out, "me/x", "--yes", "--quiet")
    told = '"license" must be one of [apache-2.0, mit]'
    assert (ran.code, ran.err) == (2, f"fuse: me/x: the hub refuses the front matter of README.md ({told})\n")
    assert not hub.files("me/x")
    (out / "README.md").write_text("# No front matter\n")
    ran = push(out, "me/x", "--yes", "--quiet")
    assert ran.code == 0 and ran.err == (
        "the hub says of the card: Warnings while validating metadata in README.md: - empty or missing yaml metadata in "
        "repo card\n"
    )


def test_a_hub_that_has_not_what_was_sent(out: Path, hub: Hub) -> None:
    hub.damage = True
    ran = push(out, "me/x", "--yes", "--quiet")
    assert (ran.code, ran.err) == (
        4, "fuse: me/x: the hub has not what was sent: 'README.md' differs (did the folder change meanwhile? push again)\n"
    )  # fmt: skip


def test_nobody_is_asked(out: Path, hub: Hub) -> None:
    ran = push(out, "me/x")
    told = "nobody is there to be asked (--yes sends without a question, --dry-run sends nothing)"
    assert (ran.code, ran.err, hub.asked) == (2, f"fuse: {told}\n", [])


def test_who_says_no_sends_nothing(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    ran = push(out, "me/x")
    assert (ran.code, ran.err) == (130, "Send it? [y/N]: fuse: interrupted; nothing was sent\n")
    assert not hub.repositories and hub.asked == ["GET /api/models/me/x"]


def test_differing_licences_are_told_before_the_question(merged: Path, tmp_path: Path) -> None:
    for name, licence in (("a", "llama3"), ("b", "cc-by-nc-4.0")):
        shutil.copytree(merged.parent / name, tmp_path / name)
        (tmp_path / name / "README.md").write_text(CARD.format(licence))
    shutil.copy(merged.parent / "recipe.yaml", tmp_path)
    assert fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out").code == 0
    assert push(tmp_path / "out", "me/x", "--dry-run").out.endswith(
        "licences, as the parents state them\n"
        "  a: llama3 (has terms of its own, which go with what is made of it)\n"
        "  b: cc-by-nc-4.0 (no commercial use)\n"
        "  ! the output's card says other: not all parents state the same; the strictest that is stated is cc-by-nc-4.0 of b: "
        "no commercial use\n"
    )


def test_the_page_on_sharing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/share.md: what its commands outside of sessions send is what they say."""
    text = (sessions.ROOT / "docs/share.md").read_text()
    monkeypatch.chdir(tmp_path)
    sessions.furnish(text, tmp_path)
    (merge,) = [step.command for step in sessions.sessions(text) if step.command.startswith("fuse merge")]
    for line in [merge, *(line for _, block in sessions.BLOCK.findall(text) for line in block.splitlines())]:
        if line.startswith("fuse "):
            ran = fuse_here(*shlex.split(line)[1:])
            assert (ran.code, ran.err) == (0, ""), (line, ran)
    same(hub, "me/my-model", tmp_path / "out")
    same(hub, "me/my-model-portable", tmp_path / "portable")
    assert hub.repositories["me/my-model"].private and not hub.repositories["me/my-model-portable"].private


def test_nothing_else_in_fuse_uploads() -> None:
    """The names by which huggingface_hub uploads stand in the room of push alone."""
    uploads = ("upload_f", "upload_large", "create_commit", "create_repo", "push_to_hub", "create_branch", "preupload")
    root = Path(__file__).parent.parent / "fuse"
    found = {
        file.relative_to(root).parts[0]
        for file in root.rglob("*.py") if any(name in file.read_text() for name in uploads)
    }  # fmt: skip
    assert found == {"push"}


def test_a_token_is_never_told(out: Path, hub: Hub) -> None:
    told = [push(out, "me/x", "--yes", "--json"), push(out, "me/x", "--yes"), push(out, "me/y", "--dry-run")]
    assert all(TOKEN not in ran.out + ran.err for ran in told)
    assert hashlib.sha256(TOKEN.encode()).hexdigest() not in "".join(ran.out for ran in told)
