"""fuse verify on folders that a stranger made: what a record names, links, pipes and crowds of files."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cli import fuse_here
from tests.members import save_member

NO_HASH = "0" * 64
Act = Callable[[Path], object]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    save_member(LlamaForCausalLM(config), root / "a")
    (root / "recipe.yaml").write_text("members: {a: a}\nlanguage: {method: linear, weights: 1}\n")
    assert fuse_here("merge", root / "recipe.yaml", root / "out", "--quiet").code == 0
    return root / "out"


def recorded(key: str, name: str, told: object = NO_HASH) -> Act:
    def act(folder: Path) -> None:
        record = json.loads((folder / "fuse.json").read_text())
        record.setdefault(key, {})[name] = told
        (folder / "fuse.json").write_text(json.dumps(record))

    return act


def link(name: str, to: str) -> Act:
    return lambda folder: (folder / name).symlink_to(to)


def both(*acts: Act) -> Act:
    return lambda folder: [act(folder) for act in acts]


def folder_for(key: str) -> Act:
    return both(lambda folder: (folder / "sub").mkdir(), link("told", "sub"), recorded(key, "told"))


NO_FILE = "which is no file in the folder"
ODD: dict[str, tuple[Act, str]] = {
    **{
        f"{key} {name}": (recorded(key, name, "" if key == "marks" else NO_HASH),
                          f"/fuse.json: {key} names {name!r}, {NO_FILE}")
        for key in ("files", "sha256", "marks", "code") for name in ("../x", "/etc/passwd", "a/../b", "./a", "")
    },
    "a name with NUL": (recorded("files", "a\0b"), "/a\\x00b: is missing, and fuse.json records it"),
    "a long name": (recorded("files", "x" * 300), f"/{'x' * 300}: is missing, and fuse.json records it"),
    "a folder for a small file": (folder_for("files"), "/told: is a folder, and fuse.json records a file"),
    "a folder for code": (folder_for("code"), "/told: is a folder, and fuse.json records a file"),
    "code of any hash": (
        both(recorded("code", "x.py", ""), lambda folder: (folder / "x.py").write_text("")),
        "/x.py: is code, and not as fuse.json records it",
    ),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "/pipe: is neither a file nor a folder"),
    "a link to itself": (link("loop", "loop"), "/loop: is a link that leads to itself"),
    "a link to nothing": (link("none", "nothing"), "/none: is neither a file nor a folder"),
    "a link out": (link("x.md", "/etc/hostname"), "/x.md: is a link out of the folder, to /etc/hostname"),
    "a folder of links": (
        both(lambda folder: (folder / "sub").mkdir(), link("sub/up", "../..")),
        "/sub/up: is a link out of the folder, to {parent}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_odd_folders(output: Path, tmp_path: Path, what: str) -> None:
    act, told = ODD[what]
    shutil.copytree(output, folder := tmp_path / "out")
    act(folder)
    ran = fuse_here("verify", folder, "--no-load")
    assert (ran.code, ran.err) == (3, f"fuse: {folder}{told.format(parent=tmp_path)}\n")


def test_a_crowd_of_files(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fuse.verify import listing

    monkeypatch.setattr(listing, "MAX_FILES", 2000)
    shutil.copytree(output, folder := tmp_path / "out")
    for number in range(200):
        (folder / f"{number}" / "inner").mkdir(parents=True)
    assert fuse_here("verify", folder, "--no-load").code == 0
    for number in range(1800):
        (folder / f"{number}.md").touch()
    before = time.process_time()
    ran = fuse_here("verify", folder, "--no-load")
    assert (ran.code, ran.err) == (3, f"fuse: {folder}: holds more than 2,000 files\n")
    assert time.process_time() - before < 1


def test_a_folder_that_may_not_be_read(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be looked at is never called whole."""
    shutil.copytree(output, folder := tmp_path / "out")
    (folder / "sub").mkdir()
    scandir = os.scandir

    def refusing(path: Path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    ran = fuse_here("verify", folder, "--no-load")
    assert (ran.code, ran.err) == (4, f"fuse: {folder}/sub: cannot be read (Permission denied)\n")


@pytest.mark.parametrize(("origin", "name"), [("/etc", "hostname"), ("/etc/hostname", "a"), ("x" * 5000, "a.safetensors"),
                                              (".", "x" * 300 + ".safetensors"), (".", "pipe.safetensors")])  # fmt: skip
def test_sources_are_files_of_weights(output: Path, tmp_path: Path, origin: str, name: str) -> None:
    """A record that names other files of the reader's machine has none of them read."""
    shutil.copytree(output, folder := tmp_path / "out")
    os.mkfifo(tmp_path / "pipe.safetensors")
    recorded("members", "a", {"origin": origin, "sha256": {name: NO_HASH}})(folder)
    ran = fuse_here("verify", folder, "--no-load", "--sources", tmp_path)
    assert ran.code == 0 and ran.out.splitlines()[-1] == "sources: not checked: no source with a hash is where it was; " + (
        f"1 no longer where it was, the first {tmp_path / origin / name}" if name.endswith(".safetensors") else
        "1 on the hub, in a store or without a hash"
    )  # fmt: skip
