"""Members in an object store, against an S3 server on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cli import fuse_here
from tests.members import perturbed, save_member
from tests.store_server import Store, s3_server

RECIPE = "members: {{one: {one}, two: {two}}}\nlanguage: {{method: linear, weights: {weights}}}\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with s3_server() as store:
        yield store


@pytest.fixture
def store(server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for key, value in server.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return server


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
