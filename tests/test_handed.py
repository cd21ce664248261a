"""A folder that `fuse ask` hands to transformers has its weights in safetensors of its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fuse.checkpoint import check_handed
from fuse.errors import CheckpointError
from fuse.safetensors_header import read_header
from tests.cli import Ran, fuse_here

BASE = Path(__file__).parent.parent / "recipes" / "zoo" / "base"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "model"))


def asked(folder: Path) -> Ran:
    return fuse_here("ask", folder, "hello", "--max-tokens", 2)


def test_a_plain_folder_answers(folder: Path) -> None:
    ran = asked(folder)
    assert (ran.code, ran.err) == (0, "")


def test_weights_that_are_cut_short(folder: Path) -> None:
    file, data = folder / "model.safetensors", folder.parent / "questions.jsonl"
    file.write_bytes(file.read_bytes()[:100_000])
    data.write_text('{"question": "hello", "answer": "x"}\n')
    end = max(entry.end for entry in read_header(BASE / "model.safetensors").values())
    told = f"fuse: {file}: the tensors end at byte {end:,} but the file has 100,000: truncated\n"
    for ran in (asked(folder), fuse_here("eval", BASE, folder, "--data", data, "--quiet")):
        assert (ran.code, ran.out, ran.err) == (3, "", told)


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    ran = asked(folder)
    assert (ran.code, ran.out, ran.err) == (3, "", f"fuse: {folder}/tokenizer.json: the file is missing\n")


def test_a_pickle_is_not_read(folder: Path) -> None:
    """transformers itself would open it."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    ran = asked(folder)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == (
        f"fuse: {folder}: holds pytorch_model.bin but no safetensors; fuse does not read pickles and other formats "
        "(load it with transformers where you trust it, and `save_pretrained`)\n"
    )


def test_an_index_that_leads_out(folder: Path) -> None:
    """transformers itself would follow it."""
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}))
    ran = asked(folder)
    assert (ran.code, ran.out) == (3, "")
    first = next(iter(names))
    assert ran.err == (
        f"fuse: {index}: shard name '../outside.safetensors' of tensor '{first}' is not a plain file name\n"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_link_that_leads_out(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    ran = asked(folder)
    told = f"is a link out of the folder, to {folder.parent / name}"
    assert (ran.code, ran.out, ran.err) == (3, "", f"fuse: {folder / name}: {told}\n")


def test_a_shard_that_leads_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "a.safetensors").symlink_to("../outside.safetensors")
    index = {"weight_map": {"x": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is a link out of the folder"):
        check_handed(folder)


def test_an_adapter_beside_it(folder: Path) -> None:
    """transformers would load its weights too, from a pickle where that is what there is."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/name"}')
    ran = asked(folder)
    told = "holds adapter_config.json beside config.json, so that loaders would change its weights"
    assert (ran.code, ran.err) == (3, f"fuse: {folder}: {told} (move one of them elsewhere)\n")
