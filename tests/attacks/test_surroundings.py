"""Good inputs in odd surroundings: the output is there and whole."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.attacks.harness import ROOT, attack, listing, within
from tests.attacks.scenes import place

MERGE = "merge recipe.yaml out"
SHORT = re.compile(
    r"fuse: [ab]/model-\d{5}-of-00200\.safetensors: cannot be read \(Too many open files: 64 are allowed, "
    r"`ulimit -n NUMBER` allows more\); nothing was written\n"
)
SURROUNDINGS: dict[str, dict[str, str]] = {
    "no home": {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache", "HF_HOME": "/nonexistent/hf"},
    "locale C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"},
    "a terminal that can nothing": {"TERM": "dumb", "COLUMNS": "1"},
    "no colour": {"NO_COLOR": "1", "TERM": ""},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_environment(name: str, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    ran = attack(MERGE, tmp_path, env=SURROUNDINGS[name])
    assert (ran.code, ran.err) == (0, "")
    assert (tmp_path / "out/model.safetensors").is_file()
    within(ran)


def test_200_shards(family: Path, tmp_path: Path) -> None:
    """They are all open at once: with too few handles one sentence says so, and there is no output."""
    place(tmp_path, family)
    for name in "ab":
        in_shards(tmp_path / name, 200)
    before = listing(tmp_path)
    ran = attack(MERGE, tmp_path, limits={"NOFILE": 64})
    assert ran.code == 4 and SHORT.fullmatch(ran.err), ran.err
    assert listing(tmp_path) == before
    ran = attack(MERGE, tmp_path, limits={"NOFILE": 1024})
    assert (ran.code, ran.err) == (0, "")
    assert len(load_file(tmp_path / "out/model.safetensors")) == 21 + 40 * 9
    within(ran)


def in_shards(folder: Path, count: int) -> None:
    """The member with 42 layers, one or two tensors a shard."""
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first = {key: value for key, value in held.items() if ".layers.0." in key}
    for layer in range(2, 42):
        held |= {key.replace(".0.", f".{layer}.", 1): value.clone() for key, value in first.items()}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 42}))
    places = {key: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, key in enumerate(held)}
    for shard in set(places.values()):
        save_file({key: held[key] for key in held if places[key] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": sum(v.nbytes for v in held.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_modes_follow_the_mask(mask: int, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    done = process("-m", "fuse", *MERGE.split(), cwd=tmp_path, mask=mask)
    assert (done.returncode, done.stderr) == (0, b"")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o666 & ~mask} and (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask


def test_without_asserts(family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    done = process("-O", "-m", "fuse", *MERGE.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "b/config.json").write_text("{}")
    done = process("-O", "-m", "fuse", "plan", "recipe.yaml", cwd=tmp_path)
    said = b"fuse: b: config.json: model_type is missing (is this a folder that transformers wrote?)\n"
    assert (done.returncode, done.stderr) == (3, said)


def test_nobody_reads_what_is_said(family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    reading, writing = os.pipe()
    os.close(reading)
    done = process("-m", "fuse", "plan", "recipe.yaml", "--json", cwd=tmp_path, out=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def process(
    *words: str, cwd: Path, mask: int = 0o022, out: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        stdout=out, stderr=subprocess.PIPE, umask=mask, timeout=120, check=False,
    )  # fmt: skip
