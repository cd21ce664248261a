"""The command line starts fast, imports no torch where it needs none, and is quiet about what it cannot know."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cli import fuse, fuse_here
from tests.members import perturbed, save_member


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    )
    save_member(model, root / "a")
    save_member(perturbed(model, 1), root / "b")
    (root / "recipe.yaml").write_text("members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\n")
    return root


@pytest.mark.parametrize("args", [["--help"], ["schema"], ["plan", "recipe.yaml"], ["plan", "recipe.yaml", "--json"]])
def test_no_torch(family: Path, args: list[str]) -> None:
    code = (
        "import sys\nfrom fuse.cli import cli\n"
        f"cli.main({args!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'mergekit', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=family, check=True, capture_output=True, timeout=60)


def test_plan_json_accounts_for_every_tensor(family: Path) -> None:
    ran = fuse_here("plan", family / "recipe.yaml", "--json")
    plan = json.loads(ran.out)
    seen = [(s["member"], s["tensor"]) for row in plan["rows"] for s in row["sources"]]
    assert len(seen) == len(set(seen)) == sum(m["tensors"] for m in plan["members"]) == 42
    assert plan["cost"]["write"] == sum(m["bytes"] for m in plan["members"]) // 2
    assert not plan["dropped"] and {v["topic"] for v in plan["verdicts"]} >= {"same architecture", "tokens", "licence"}


def test_plan_of_a_7b_recipe_is_quick(tmp_path: Path) -> None:
    """Headers of three 7B members over sparse files: nothing but the headers is read."""
    import struct

    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
              "num_attention_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False}  # fmt: skip
    from fuse.families import language_shapes

    shapes, _ = language_shapes(config, "")
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        tokens = {f"t{i}": i for i in range(32000)}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": []}))
        header, at = {}, 0
        for tensor, shape in shapes.items():
            size = 2 * torch.Size(shape).numel()
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
    (tmp_path / "recipe.yaml").write_text("base: base\nmembers: {a: a, b: b}\nlanguage: {method: ties, weights: 0.5}\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = fuse("plan", tmp_path / "recipe.yaml")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.code == 0, ran.err
    # Half a second of a common processor: the bound only catches disasters.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert "read 40.4 GB, write 13.5 GB in 3 files" in ran.out


def test_choices_stand_in_the_line() -> None:
    told = "fuse: Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish ("
    assert fuse_here("completion").err.startswith(told)


def test_unknown_verb() -> None:
    ran = fuse_here("merg")
    assert (ran.code, ran.err) == (2, "fuse: no verb 'merg' (did you mean: merge)\n")


def test_version_and_help() -> None:
    assert fuse_here("--version").out == "fuse, version 0.1.0\n"
    assert "Run a recipe into a folder" in fuse_here("--help").out


def test_closed_pipe_is_quiet(family: Path) -> None:
    ran = subprocess.run(
        f"{sys.executable} -m fuse plan recipe.yaml --all | head -1", shell=True, cwd=family, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("members\n", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_merge_leaves_nothing(tmp_path: Path, family: Path, number: int, code: int) -> None:
    """A merge that takes seconds is stopped in the middle of its weights."""
    config = LlamaConfig(
        hidden_size=512, intermediate_size=20_000, num_hidden_layers=8, num_attention_heads=4, vocab_size=64
    )
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in LlamaForCausalLM(config).state_dict().items()}
    for name in "ab":
        (tmp_path / name).mkdir()
        config.save_pretrained(tmp_path / name)
        save_file(
            {k: torch.zeros(s, dtype=torch.bfloat16) for k, s in shapes.items()}, tmp_path / name / "model.safetensors"
        )
        (tmp_path / name / "tokenizer.json").write_text((family / "a" / "tokenizer.json").read_text())
    (tmp_path / "recipe.yaml").write_text("members: {a: a, b: b}\nlanguage: {method: slerp, t: 0.5}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "fuse", "merge", "recipe.yaml", "out"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    partial = None
    deadline = time.monotonic() + 60
    while partial is None and time.monotonic() < deadline and process.poll() is None:
        partial = next(
            (p for p in tmp_path.glob(".out.partial/folder/model.safetensors") if p.stat().st_size > 10_000), None
        )
        time.sleep(0.005)
    assert partial is not None, "the merge was over before it could be stopped"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "recipe.yaml"]
    assert said.strip() == "fuse: interrupted; nothing was written"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_follow_the_umask(family: Path, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        assert fuse_here("merge", family / "recipe.yaml", tmp_path / "out").code == 0
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o666 & ~mask}


def test_full_disk_leaves_nothing(family: Path, tmp_path: Path) -> None:
    """A file may grow to 20 kB here; the weights need more."""
    import resource

    done = subprocess.run(
        [sys.executable, "-m", "fuse", "merge", str(family / "recipe.yaml"), "out"], cwd=tmp_path, capture_output=True,
        text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "fuse: out: File too large; nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_output_needs_its_parent(family: Path, tmp_path: Path) -> None:
    ran = fuse_here("merge", family / "recipe.yaml", tmp_path / "no" / "out")
    said = f"fuse: {tmp_path}/no/out: the folder '{tmp_path}/no' does not exist (make it first)\n"
    assert (ran.code, ran.err) == (2, said)
    assert not list(tmp_path.iterdir())


def test_merge_says_what_it_did(family: Path, tmp_path: Path) -> None:
    ran = fuse_here("merge", family / "recipe.yaml", tmp_path / "out", "--json")
    told = json.loads(ran.out)
    assert (told["merged"], told["copied"], told["dropped"]) == (21, 0, 0)
    assert told["plan"] == json.loads((tmp_path / "out" / "fuse.json").read_text())["plan"]


@pytest.mark.parametrize("verb", [[], ["recipe"], ["inspect"]])
def test_nothing_to_do_is_told_by_the_help(verb: list[str]) -> None:
    ran = fuse_here(*verb)
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith("Usage: ") and "\n\nOptions:\n" in ran.err


def test_a_missing_argument_names_the_help() -> None:
    ran = fuse_here("plan")
    assert (
        ran.code == 2
        and ran.err.startswith("fuse: Missing argument 'RECIPE'. (")
        and ran.err.endswith("plan --help)\n")
    )
