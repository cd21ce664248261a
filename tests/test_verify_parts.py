"""`fuse verify` of folders that are no whole model, of grafts and encoder-decoders, and what verifying costs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.digests import file_sha256
from fuse.safetensors_header import read_header
from tests import official_adapters, recipe_members, tiny_clipcap, tiny_grafts, verified
from tests.cli import fuse_forked
from tests.test_fused_seq2seq import save_t5
from tests.verified import edited, flip, outcomes, plant, tensor, verify


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama, llava, t5 and gpt2; memory: a donor of a graft."""
    root = tmp_path_factory.mktemp("folders")
    for kind in ("llama", "llava", "gpt2"):
        recipe_members.save(kind, root / kind, 0)
    save_t5(root / "t5")
    tiny_grafts.donor(root / "memory", "mks2", verified.config_of(root / "llama"))
    return root


# What is no model -----------------------------------------------------------------------------------------------------


def test_a_donor(folders: Path, tmp_path: Path) -> None:
    ran = verify(folders / "memory")
    assert ran.code == 0, ran.err
    lines = dict(line.split(": ", 1) for line in ran.out.splitlines())
    assert list(lines) == ["files", "parts", "headers", "finite", "loads"]
    assert lines["parts"] == "a graft of kind mks2, every tensor as described"
    assert lines["loads"] == "not checked: parts are no model; a recipe that names them makes one"
    folder = shutil.copytree(folders / "memory", tmp_path / "x")
    edited(folder / "graft.json", lambda told: told["config"].update(inner_size=9))
    ran = verify(folder)
    assert ran.code == 3
    assert re.match(rf"fuse: {folder}/graft.safetensors: tensor '\S+' has shape", ran.err), ran.err


def test_a_donor_with_a_nan(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "memory", tmp_path / "x")
    entry = next(e for e in read_header(folder / "graft.safetensors").values() if e.dtype == "F32")
    plant(entry, 2, float("nan"))
    told = f"fuse: {folder}/graft.safetensors: tensor {entry.name!r} holds nan at element 2\n"
    assert verify(folder).err == told


def test_what_an_import_made(folders: Path, tmp_path: Path) -> None:
    """A projector folder, and the language model beside it as a model of its own."""
    host = verified.config_of(folders / "gpt2")
    tiny_clipcap.of_host(tmp_path / "coco.pt", host)
    ran = fuse_forked("import", "clipcap", tmp_path / "coco.pt", tmp_path / "out", "--host", folders / "gpt2")
    assert ran.code == 0, ran.err
    ran = verify(tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert outcomes(ran) == {
        "files": "passed", "parts": "passed", "headers": "passed", "finite": "passed", "loads": "skipped",
        "language/files": "passed", "language/headers": "passed", "language/config": "passed",
        "language/sha256": "skipped", "language/finite": "passed", "language/loads": "passed",
        "language/answers": "passed",
    }  # fmt: skip
    weights = tmp_path / "out" / "language" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    ran = verify(tmp_path / "out")
    assert (ran.code, f"fuse: {weights}: the tensors end at byte" in ran.err) == (3, True)


def test_an_adapter(folders: Path, tmp_path: Path) -> None:
    official_adapters.peft_folder(tmp_path / "style", verified.config_of(folders / "llama"))
    ran = verify(tmp_path / "style")
    assert ran.code == 0, ran.err
    assert "adapter: an adapter of type LORA; whether it fits its base is not told without it\n" in ran.out
    assert "loads: not checked: an adapter changes a model and is none" in ran.out
    assert "sha256: not checked: no fuse.json: there is nothing to compare the bytes with\n" in ran.out
    weights = tmp_path / "style" / "adapter_model.safetensors"
    (tmp_path / "style" / "fuse.json").write_text(json.dumps({"sha256": {weights.name: file_sha256(weights)}}))
    assert "sha256: 1 file as recorded, " in verify(tmp_path / "style").out
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert verify(tmp_path / "style").err == f"fuse: {weights}: is not as fuse.json records it\n"
    (tmp_path / "style" / "adapter_model.safetensors").unlink()
    assert verify(tmp_path / "style").err == f"fuse: {tmp_path}/style: holds no adapter_model.safetensors\n"


# Grafts, encoder-decoders ---------------------------------------------------------------------------------------------


def test_a_model_with_a_graft_and_a_branch(folders: Path, tmp_path: Path) -> None:
    recipe = f"members: {{a: {folders}/llava}}\nlanguage: {{method: linear, weights: {{a: 1}}}}\nvision: [a]\n"
    tiny_grafts.donor(tmp_path / "memory", "mks2", verified.config_of(folders / "llava")["text_config"])
    out = verified.merged(tmp_path, recipe + "grafts: [memory]\n")
    ran = verify(out)
    assert (ran.code, ran.err) == (0, "")
    assert "config: a fused model on llama with 1 branch and 1 graft, every tensor in its place\n" in ran.out
    name = next(e.name for e in read_header(out / "model.safetensors").values() if e.name.startswith("grafts."))
    entry = tensor(out, name)
    flip(entry.file, entry.end - 1, 3)
    told = f"fuse: {out}/model.safetensors: is not as fuse.json records it: tensor {name!r} differs\n"
    assert (verify(out, "--no-load").code, verify(out, "--no-load").err) == (3, told)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_other_language_models(folders: Path, tmp_path: Path, kind: str) -> None:
    out = verified.merged(
        tmp_path, f"members: {{a: {folders}/{kind}}}\nlanguage: {{method: linear, weights: {{a: 1}}}}\n"
    )
    ran = verify(out)
    assert ran.code == 0, ran.err
    assert "\nanswers: finite logits for a question, " in ran.out


def test_the_original_layout_of_another_code(tmp_path: Path) -> None:
    """It is looked at, and not run: transformers has no class for it."""
    recipe_members.save("mgm", tmp_path / "mgm", 0)
    ran = verify(tmp_path / "mgm")
    assert ran.code == 0, ran.err
    assert "loads: not checked: the original layout of mgm, which only the code it came from loads\n" in ran.out


# What it costs --------------------------------------------------------------------------------------------------------


COST = """
import resource, sys
import torch
from fuse import hub, verify
from fuse.verify import check, finite, hashes
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = most()
try:
    for name, outcome in check.verify(check.Path(sys.argv[1]), load=False, threads=2): pass
except check.CheckpointError as error:
    print(error)
print(most() - before)
"""


def test_large_tensors_are_read_through_small_buffers(folders: Path, tmp_path: Path) -> None:
    """Two threads look at 120 MB, and hold less than 60 MB more than what they imported."""
    folder = shutil.copytree(folders / "llama", tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    width = tensors["lm_head.weight"].shape[1]
    rows = 15_000_000 // width
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.zeros(rows, width)
    tensors["lm_head.weight"][-1, -1] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    del tensors
    edited(folder / "config.json", lambda told: told.update(vocab_size=rows))
    (folder / "fuse.json").write_text("{}")
    verified.hashed(folder)
    done = subprocess.run([sys.executable, "-c", COST, folder], capture_output=True, text=True, check=True)
    told, held = done.stdout.splitlines()
    assert told == f"{folder}/model.safetensors: tensor 'lm_head.weight' holds inf at element {rows * width - 1:,}"
    assert int(held) < 60 << 20
