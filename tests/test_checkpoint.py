"""Folders: single file, shards, hub ids; what an index, a config or a folder may not be."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fuse.checkpoint import open_checkpoint, read_tensors
from fuse.errors import CheckpointError, FuseError, MachineError, RecipeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "member"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": torch.zeros(2), "b": torch.ones(3)}, folder / "model.safetensors")
    return folder


def sharded(folder: Path, weight_map: object, **more: object) -> Path:
    (folder / "model.safetensors").unlink(missing_ok=True)
    save_file({"a": torch.zeros(2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(3)}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, **more}))
    return folder


GOOD = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def refusal(folder: Path) -> str:
    with pytest.raises(FuseError) as error:
        open_checkpoint("m", str(folder), revision=None, relative_to=folder.parent)
    return str(error.value).removeprefix(str(folder) + "/").removeprefix(str(folder))


def test_single_and_sharded_agree(folder: Path) -> None:
    single = {name: (e.dtype, e.shape) for name, e in read_tensors(folder).items()}
    assert single == {name: (e.dtype, e.shape) for name, e in read_tensors(sharded(folder, GOOD)).items()}


def test_relative_to_the_recipe(folder: Path) -> None:
    opened = open_checkpoint("m", "member", revision=None, relative_to=folder.parent)
    assert (opened.name, opened.origin, opened.revision, opened.nbytes) == ("m", "member", "", 20)


INDEX = {
    "parent": ({**GOOD, "a": "../model.safetensors"}, "shard name '../model.safetensors' of tensor 'a' is not a plain"),
    "absolute": ({**GOOD, "a": "/x.safetensors"}, "shard name '/x.safetensors' of tensor 'a' is not a plain file name"),
    "drive": ({**GOOD, "a": "C:\\x.safetensors"}, "is not a plain file name"),
    "not a string": ({**GOOD, "a": 3}, "shard name 3 of tensor 'a' is not a plain file name"),
    "pickle": ({**GOOD, "a": "pytorch_model.bin"}, "is not a plain file name"),
    "list": (["a"], "weight_map is not a table of tensor names"),
    "empty": ({}, "weight_map is not a table of tensor names"),
    "missing shard": ({**GOOD, "a": "model-00003.safetensors"}, "model-00003.safetensors: the file is missing"),
    "wrong shard": ({"a": GOOD["b"], "b": GOOD["b"]}, "tensor 'a' is not in model-00002-of-00002.safetensors (1 missing"),
    "absent tensor": ({**GOOD, "c": GOOD["a"]}, "tensor 'c' is not in model-00001-of-00002.safetensors (1 missing in all)"),
    "not indexed": ({"a": GOOD["a"]}, "shard 'model-00002-of-00002.safetensors' is in the folder but not in the index"),
}  # fmt: skip


@pytest.mark.parametrize("case", INDEX)
def test_refuses_index(folder: Path, case: str) -> None:
    weight_map, message = INDEX[case]
    assert message in refusal(sharded(folder, weight_map))


def test_refuses_tensor_in_two_shards(folder: Path) -> None:
    sharded(folder, GOOD)
    save_file({"a": torch.zeros(2), "b": torch.ones(3)}, folder / GOOD["b"])
    assert f"tensor 'a' is in {GOOD['b']} but the index puts it in {GOOD['a']}" in refusal(folder)


def test_refuses_stale_single_file_beside_index(folder: Path) -> None:
    sharded(folder, GOOD)
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    assert "both model.safetensors and model.safetensors.index.json are there (remove the stale one)" in refusal(folder)


def test_refuses_links_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert "is a link out of the folder" in refusal(folder)


def test_follows_the_links_of_the_hub_cache(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).rename(blobs / file)
        (snapshot / file).symlink_to(blobs / file)
    assert set(open_checkpoint("m", str(snapshot), revision=None, relative_to=tmp_path).tensors) == {"a", "b"}


CONFIG = {
    "": "the file is empty",
    "[]": "holds a JSON list, not an object",
    "\ufeff{}": "begins with a byte order mark",
    "{": "not JSON",
    '{"a": 1, "a": 2}': "key 'a' stands twice in one object",
    '{"a": NaN}': "NaN is not a JSON number",
    '{"a":' + "[" * 100_000: "nested too deeply",
    '{"text_config": {"trust_remote_code": true}}': "text_config.trust_remote_code asks to run code from the folder",
    '{"x": [{"_attn_implementation": "evil/repo"}]}': "x[0]._attn_implementation: 'evil/repo' names code to fetch",
    '{"_attn_implementation_internal": "a"}': "_attn_implementation_internal: 'a' names code to fetch; fuse never does",
    '{"quantization_config": {"quant_method": "gptq"}}': "quantization_config: the weights are quantised (gptq)",
}


@pytest.mark.parametrize("text", CONFIG)
def test_refuses_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert CONFIG[text] in refusal(folder)


def test_refuses_folders_without_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refusal(folder) == (
        ": holds pytorch_model.bin but no safetensors; fuse does not read pickles and other formats "
        "(load it with transformers where you trust it, and `save_pretrained`)"
    )
    (folder / "pytorch_model.bin").unlink()
    assert refusal(folder) == ": holds neither model.safetensors nor model.safetensors.index.json"
    (folder / "config.json").rename(folder / "adapter_config.json")
    hint = "a recipe with the member {base: MODEL, adapter: FOLDER} makes the model"
    assert refusal(folder) == f": this is an adapter, not a whole checkpoint ({hint})"


def test_names_that_are_no_folder(tmp_path: Path) -> None:
    def attempt(location: str, revision: str | None = None) -> FuseError:
        with pytest.raises(FuseError) as error:
            open_checkpoint("m", location, revision=revision, relative_to=tmp_path)
        return error.value

    assert str(attempt("../no/such")) == (
        "'../no/such' does not exist (a folder, relative to the recipe, or a hub id org/name)"
    )
    (tmp_path / "file").write_text("")
    assert isinstance(attempt("file"), RecipeError)
    (tmp_path / "here").mkdir()
    assert "is a local folder and has no revision" in str(attempt("here", "main"))
    offline = attempt("nobody/nothing")
    assert isinstance(offline, MachineError) and offline.exit_code == 4
    assert "the hub cannot be reached" in str(offline) and "hf download nobody/nothing" in str(offline)


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: the file is missing"):
        open_checkpoint("m", str(folder), revision=None, relative_to=folder.parent)
