"""`fuse verify` of a folder of GGUFs, as `fuse export --to gguf` writes it."""

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse.digests import file_sha256
from tests import recipe_members, verified
from tests.cli import fuse_here
from tests.test_export_gguf import FAKE
from tests.verified import edited, flip, outcomes, verify

CHECKS = {"files": "passed", "gguf": "passed", "sha256": "passed", "loads": "skipped"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a script in the converter's place makes of a merged llama: one file that tells of three tensors."""
    room = tmp_path_factory.mktemp("gguf")
    recipe_members.save("llama", room / "a", 0)
    merged = verified.merged(room, "members: {a: a}\nlanguage: {method: linear, weights: 1}\n")
    (room / "convert.py").write_text(f"FAILS = {{}}\n{FAKE}")
    runs = ("--converter", room / "convert.py", "--python", sys.executable)
    ran = fuse_here("export", merged, "--to", "gguf", room / "gguf", *runs)
    assert ran.code == 0, ran.err
    return room / "gguf"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "x"))


def test_a_whole_folder(folder: Path) -> None:
    size = (folder / "model-F16.gguf").stat().st_size
    assert verify(folder).out == (
        f"files: none beside the weights that loaders read\ngguf: 3 tensors in 1 file, {size} bytes\n"
        f"sha256: 1 file as recorded, {size} bytes\n"
        "loads: not checked: a GGUF is for llama.cpp and what reads its files, which are not called\n"
    )
    (folder / "README.md").write_text("# Mine\n")
    (folder / "picture.png").write_bytes(b"")
    ran = verify(folder, "--json", "--no-load")
    assert (ran.code, ran.err, outcomes(ran)) == (0, "", CHECKS)
    assert json.loads(ran.out)["checks"][1]["tensors"] == 3


def test_with_small_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    sha256 = file_sha256(folder / "notes.txt")
    edited(folder / "fuse.json", lambda told: told["files"].update({"notes.txt": sha256}))
    assert verify(folder).out.startswith("files: 1 small file as recorded, none beside them that loaders read\n")
    (folder / "notes.txt").write_text("y")
    assert verify(folder).err == f"fuse: {folder}/notes.txt: is not as fuse.json records it\n"


def test_what_fuse_did_not_write(folder: Path) -> None:
    """Files of GGUF alone: there is nothing to compare their bytes with."""
    (folder / "fuse.json").unlink()
    ran = verify(folder, "--json")
    assert (ran.code, outcomes(ran)) == (0, {**CHECKS, "sha256": "skipped"})
    assert json.loads(ran.out)["checks"][2]["told"] == "no fuse.json: there is nothing to compare the bytes with"
    (folder / "fuse.json").write_text('{"sha256": {}, "files": {"model-F16.gguf": ""}}')
    assert "sha256: not checked: fuse.json holds no hashes of them\n" in verify(folder).out


def a_bit(folder: Path) -> None:
    flip(folder / "model-F16.gguf", -1)


def no_magic(folder: Path) -> None:
    flip(folder / "model-F16.gguf", 0)


def cut(folder: Path) -> None:
    (folder / "model-F16.gguf").write_bytes(b"GGUF" + struct.pack("<IQ", 3, 3))


def another_version(folder: Path) -> None:
    (folder / "model-F16.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 3, 0))


def no_tensors(folder: Path) -> None:
    (folder / "model-F16.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


def another(folder: Path) -> None:
    shutil.copy(folder / "model-F16.gguf", folder / "other.gguf")


def one_in_a_folder(folder: Path) -> None:
    (folder / "sub").mkdir()
    shutil.copy(folder / "model-F16.gguf", folder / "sub" / "other.gguf")
    edited(folder / "fuse.json", lambda told: told["files"].update({"sub/other.gguf": "0" * 64}))


def renamed(folder: Path) -> None:
    (folder / "model-F16.gguf").rename(folder / "model.gguf")


def tensors_beside(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def a_pickle(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"")
    edited(folder / "fuse.json", lambda told: told["files"].update({"model.bin": ""}))


def code(folder: Path) -> None:
    (folder / "run.py").write_text("")


def a_link_out(folder: Path) -> None:
    (folder / "model-F16.gguf").rename(folder.parent / "away.gguf")
    (folder / "model-F16.gguf").symlink_to(folder.parent / "away.gguf")


NONE = "model-F16.gguf: is no GGUF of version 2 or 3 with tensors"
FORMAT = "holds weights in a format that fuse does not write"
# what is done to the folder -> what is said, behind the folder
DAMAGED: dict[Callable[[Path], None], str] = {
    a_bit: "model-F16.gguf: is not as fuse.json records it",
    no_magic: NONE, cut: NONE, another_version: NONE, no_tensors: NONE,
    another: "other.gguf: is a file that fuse.json does not record (loaders may read it; take it out of the folder)",
    one_in_a_folder: f"sub/other.gguf: {FORMAT}",
    renamed: "model-F16.gguf: is missing, and fuse.json records it",
    tensors_beside: "model.safetensors: holds weights that fuse.json does not record",
    a_pickle: f"model.bin: {FORMAT}",
    code: "run.py: is code that fuse.json does not record (do not load this folder with trust_remote_code)",
    a_link_out: "model-F16.gguf: is a link out of the folder, to {folder}/away.gguf",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: damage.__name__)
def test_damage(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder)
    ran = verify(folder, "--quiet")
    told = DAMAGED[damage].format(folder=folder.parent)
    assert (ran.code, ran.out, ran.err) == (3, "", f"fuse: {folder}/{told}\n")


def test_its_sources(exported: Path, folder: Path) -> None:
    ran = verify(folder, "--sources", exported.parent)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "sources: 1 source file as recorded")
