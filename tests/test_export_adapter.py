"""`fuse export --to adapter`: PEFT loads what a merge did, exactly at full rank, and the error told is the one there is."""

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import fuse  # noqa: F401 - makes torchvision importable before PEFT wants it
from fuse.export.low_rank import low_rank
from tests import folds, tiny_processors, tiny_text, tiny_vlm
from tests.cli import Ran, fuse_here
from tests.folds import IDS
from tests.members import perturbed

RECIPE = (
    "base: base\nmembers: {one: one, two: two}\n"
    "language: {method: task_arithmetic, weights: {one: 0.5, two: 0.5}}\noutput: {dtype: float32}\n"
)
HINT = "(--base FOLDER names the model that it was merged from)"


def family(folder: Path, kind: str) -> None:
    """A base, two fine-tunes of it, and their merge `out`."""
    sees = kind in tiny_processors.PROCESSORS
    model = tiny_vlm.build(kind) if sees else tiny_text.build(kind)
    for seed, name in enumerate(("base", "one", "two")):
        made = perturbed(model, seed) if seed else model
        made.save_pretrained(folder / name)
        (tiny_processors.processor(kind) if sees else tiny_processors.tokenizer()).save_pretrained(folder / name)
    (folder / "recipe.yaml").write_text(RECIPE + "vision: [one]\n" * sees)
    assert fuse_here("merge", folder / "recipe.yaml", folder / "out").code == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def made(kind: str) -> Path:
        if kind not in found:
            found[kind] = tmp_path_factory.mktemp(kind)
            family(found[kind], kind)
        return found[kind]

    return made


def export(folder: Path, out: Path, *more: object) -> Ran:
    return fuse_here("export", folder, "--to", "adapter", out, *more)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


# gpt2: matrices that lie the other way round, biases, a head that is the embedding; llava: an encoder beside it
@pytest.mark.parametrize("kind", ["llama", "gpt2", "llava"])
def test_peft_makes_the_merged_model_of_the_base(kind: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import PeftModel

    folder = made(kind)
    auto: Any = AutoModelForImageTextToText if kind == "llava" else AutoModelForCausalLM
    ran = export(folder / "out", tmp_path / "adapter", "--rank", 64, "--rest", "whole", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert told["error"] < 1e-6 and told["tensors"] and all(one["rank"] < 64 for one in told["tensors"].values())
    wanted, base = (logits(auto.from_pretrained(folder / name)) for name in ("out", "base"))
    adapted: Any = PeftModel.from_pretrained(auto.from_pretrained(folder / "base"), tmp_path / "adapter")
    assert (logits(adapted) - wanted).abs().max() < 2e-6
    assert (base - wanted).abs().max() > 1e-2
    assert (logits(adapted.merge_and_unload()) - wanted).abs().max() < 2e-6
    assert fuse_here("verify", tmp_path / "adapter").err == ""
    lefts = export(folder / "out", tmp_path / "left", "--rank", 64, "--rest", "leave", "--json")
    left = json.loads(lefts.out)
    assert left["left_out"].keys() == {n for n in told["whole"] if told["whole"][n]} | set(told["left_out"])
    assert left["error"] < 1e-6 and 1e-2 < left["error_in_all"] < 1 and not left["whole"]


def test_the_error_is_that_of_the_first_singular_vectors(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("llama")
    ran = export(folder / "out", tmp_path / "adapter", "--rank", 3, "--rest", "whole")
    assert (ran.code, ran.err) == (0, "")
    out, base = (load_file(folder / name / "model.safetensors") for name in ("out", "base"))
    record = json.loads((tmp_path / "adapter" / "fuse.json").read_text())["exported"]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    missed = total = 0.0
    for name, one in record["tensors"].items():
        delta = out[name].double().numpy() - base[name].double().numpy()
        values = np.linalg.svd(delta, compute_uv=False)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        held = stored[f"{module}.lora_B.weight"].double() @ stored[f"{module}.lora_A.weight"].double()
        assert np.isclose(one["error"], np.linalg.norm(delta - held.numpy()) / np.linalg.norm(delta), rtol=1e-5)
        assert np.isclose(one["error"], np.sqrt((values[3:] ** 2).sum() / (values**2).sum()), rtol=1e-5)
        assert np.isclose(one["delta"], np.linalg.norm(delta), rtol=1e-5) and one["rank"] == 3
        missed, total = missed + (values[3:] ** 2).sum(), total + (values**2).sum()
    assert np.isclose(record["error"], np.sqrt(missed / total), rtol=1e-5)
    lines = ran.out.splitlines()
    assert lines[0] == f"{'matrix':38}  rank  difference    error"
    name, one = next(iter(record["tensors"].items()))
    assert lines[1] == f"{name:38}     3  {one['delta']:10.4g}  {one['error']:7.3%}"
    assert lines[len(record["tensors"]) + 1] == f"15 matrices of rank 3: error {record['error']:.3%}"
    assert lines[-2] == f"of everything that differs: error {record['error_in_all']:.3%}"
    assert lines[-1] == f"{tmp_path}/adapter is an adapter of {folder}/base"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "lm_head",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 3, f"{folder}/base")


def test_fuse_reads_it_as_a_member(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("llama")
    assert export(folder / "out", tmp_path / "adapter", "--rank", 64, "--rest", "whole").code == 0
    (tmp_path / "recipe.yaml").write_text(
        f"members: {{one: {{base: {folder}/base, adapter: adapter}}}}\nlanguage: {{method: linear, weights: {{one: 1}}}}\n"
    )
    assert fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "back").err == ""
    back, out = load_file(tmp_path / "back" / "model.safetensors"), load_file(folder / "out" / "model.safetensors")
    assert back.keys() == out.keys() and all((back[key] - out[key]).abs().max() < 1e-6 for key in out)


def test_the_language_model_of_a_fused_folder(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Its branch is beside it; where only some layers differ, they are named in full."""
    folder = made("llava")
    (folder / "fused.yaml").write_text(RECIPE.replace("float32}", "float32, model: fuse}") + "vision: [one]\n")
    assert fuse_here("merge", folder / "fused.yaml", folder / "fused").code == 0
    shutil.copytree(folder / "fused", tmp_path / "fused")
    text = json.loads((folder / "fused" / "config.json").read_text())["text_config"]
    model = AutoModelForCausalLM.from_config(tiny_text.build("llama").config.__class__(**text))
    stored = load_file(folder / "fused" / "model.safetensors")
    own = {key.removeprefix("language_model."): value for key, value in stored.items() if key[:9] == "language_"}
    own["model.layers.1.mlp.up_proj.weight"] = own["model.layers.1.mlp.up_proj.weight"] + torch.ones(48, 32)
    model.load_state_dict(own)
    model.save_pretrained(tmp_path / "base")
    ran = export(tmp_path / "fused", tmp_path / "adapter", "--rank", 1, "--base", tmp_path / "base")
    assert ran.err == "" and ran.out.splitlines()[-2:] == [
        f"{len(stored) - len(own)} tensors of branches and grafts are beside the language model, not in it",
        f"{tmp_path}/adapter is an adapter of {tmp_path}/base",
    ]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.mlp.up_proj"]
    assert json.loads((tmp_path / "adapter" / "fuse.json").read_text())["exported"]["error"] < 1e-6


def test_what_is_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("llama")
    out, target = folder / "out", tmp_path / "adapter"

    def told(*more: object, code: int = 2) -> str:
        ran = export(out, target, *more)
        assert ran.code == code and not target.exists() and ran.out == "", ran
        return ran.err

    assert "--to adapter needs --rank" in told()
    assert "--mmproj" not in told("--rank", 0)
    rest = told("--rank", 4)
    assert rest.startswith(
        f"fuse: {out}: 6 tensors that no adapter changes by a matrix differ from the base's, the first is "
        "'model.embed_tokens.weight'; they are "
    ) and rest.endswith(
        "% of the difference's norm (--rest whole stores them as they are, --rest leave leaves them out)\n"
    )
    assert told("--rank", 4, "--base", out) == f"fuse: {out}: the language model is that of its base, bit by bit\n"
    other = made("gpt2") / "base"
    assert told("--rank", 4, "--base", other, code=3) == (
        f"fuse: {out}: its language model is a llama, and that of the base a gpt2 {HINT}\n"
    )
    wide = load_file(folder / "base" / "model.safetensors")
    config = json.loads((folder / "base" / "config.json").read_text())
    rows = len(wide["lm_head.weight"])
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        wide[key] = torch.cat([wide[key], wide[key][:2]])
    (tmp_path / "wide").mkdir()
    save_file(wide, tmp_path / "wide" / "model.safetensors", {"format": "pt"})
    (tmp_path / "wide" / "config.json").write_text(json.dumps({**config, "vocab_size": rows + 2}))
    assert told("--rank", 4, "--base", tmp_path / "wide", code=3) == (
        f"fuse: {out}: tensor 'lm_head.weight' has shape [{rows}, 32], and that of the base [{rows + 2}, 32]: an adapter "
        f"changes no shape {HINT}\n"
    )
    ran = fuse_here("export", out, "--to", "native", target, "--rank", 4)
    assert ran.code == 2 and "--rank is for --to adapter" in ran.err


def test_a_base_that_is_not_known(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("llama")
    shutil.copytree(folder / "out", tmp_path / "alone")
    ran = export(tmp_path / "alone", tmp_path / "adapter", "--rank", 4)
    where = tmp_path / "alone"
    assert ran == Ran(2, "", f"fuse: {where}: the base 'base' that fuse.json records is not there {HINT}\n")
    record = json.loads((where / "fuse.json").read_text())
    del record["members"]["base"]
    (where / "fuse.json").write_text(json.dumps(record))
    ran = export(where, tmp_path / "adapter", "--rank", 4)
    assert ran == Ran(2, "", f"fuse: {where}: fuse.json records no base {HINT}\n")


def load(adapter: Path, replaced: dict[str, object]) -> Any:
    """The model that the Python of an adapter's card makes."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", (adapter / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    for told, meant in {"path/to/this/folder": adapter, **replaced}.items():
        assert told in block
        block = block.replace(told, str(meant))
    found: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), found)
    return found["model"].eval()


@pytest.mark.parametrize("kind", ["llama", "t5", "llava"])
def test_the_card_loads_it(kind: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made(kind)
    assert export(folder / "out", tmp_path / "adapter", "--rank", 64, "--rest", "whole").code == 0
    model = load(tmp_path / "adapter", {"path/to/the/base": folder / "base"})
    assert (folds.logits(model) - folds.logits(folds.load(folder / "out"))).abs().max() < 3e-6
    assert "base_model" not in (tmp_path / "adapter" / "README.md").read_text()


def test_a_base_on_the_hub(made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a hub id in the config and the card, at the commit that was read."""
    from huggingface_hub import ModelCard

    folder, commit = made("llama"), "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder / "base", tmp_path / commit)
    monkeypatch.setattr("fuse.hub.open_repository", lambda *_: (tmp_path / commit, None))
    ran = export(folder / "out", tmp_path / "adapter", "--rank", 64, "--rest", "whole", "--base", "hf://org/base")
    assert ran.out.splitlines()[-1] == f"{tmp_path}/adapter is an adapter of org/base"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", commit)
    told = ModelCard.load(tmp_path / "adapter" / "README.md").data.to_dict()
    assert (told["base_model"], told["base_model_relation"]) == ("org/base", "adapter")
    model = load(tmp_path / "adapter", {f'"org/base", revision="{commit}"': f'"{tmp_path / commit}"'})
    assert (logits(model) - folds.logits(folds.load(folder / "out"))).abs().max() < 3e-6


def changed(file: Path) -> str:
    """One bit of the last number of a file is another; its sha256."""
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)
    return sha256(data).hexdigest()


def test_weights_that_are_not_as_recorded(made: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(made("llama") / "out", tmp_path / "out")
    changed(tmp_path / "out" / "model.safetensors")
    ran = export(
        tmp_path / "out", tmp_path / "adapter", "--rank", 4, "--rest", "whole", "--base", made("llama") / "base"
    )
    told = "is not as fuse.json records it (`fuse verify` tells where it differs)"
    assert ran == Ran(3, "", f"fuse: {tmp_path}/out/model.safetensors: {told}\n")
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_is_not_the_one_recorded(made: Callable[[str], Path], tmp_path: Path) -> None:
    """One that is named is taken all the same: the difference is to that one."""
    for name in ("out", "base"):
        shutil.copytree(made("llama") / name, tmp_path / name)
    file = tmp_path / "base" / "model.safetensors"
    was, now = sha256(file.read_bytes()).hexdigest(), changed(file)
    words = (tmp_path / "out", tmp_path / "adapter", "--rank", 4, "--rest", "whole")
    told = f"its sha256 is {now[:12]}..., and fuse.json records {was[:12]}..."
    assert export(*words) == Ran(3, "", f"fuse: {file}: is not of the base that it was merged from: {told} {HINT}\n")
    assert not (tmp_path / "adapter").exists()
    assert export(*words, "--base", tmp_path / "base").code == 0
    record = json.loads((tmp_path / "out" / "fuse.json").read_text())
    record["members"]["base"]["sha256"] = {"model-00001-of-00002.safetensors": was}
    (tmp_path / "out" / "fuse.json").write_text(json.dumps(record))
    told = "has other files of weights than the base that fuse.json records, the first model-00001-of-00002.safetensors"
    assert export(*words, "--force") == Ran(3, "", f"fuse: {tmp_path}/base: {told} {HINT}\n")


def test_the_base_is_not_replaced(made: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("out", "base"):
        shutil.copytree(made("llama") / name, tmp_path / name)
    before = sorted(path.name for path in (tmp_path / "base").iterdir())
    record = {"sha256": {}, "files": dict.fromkeys(before, "")}
    more = ("--rank", 4, "--rest", "whole", "--force")
    for out in ("base/inner", "base"):
        if out == "base":
            (tmp_path / "base" / "fuse.json").write_text(json.dumps(record))
        for base in ([], ["--base", tmp_path / "base"], ["--base", made("llama") / "base"]):
            ran = export(tmp_path / "out", tmp_path / out, *more, *base)
            told = f"fuse: {tmp_path}/{out}: the output and the base would lie in each other\n"
            assert ran == Ran(2, "", told)
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == sorted([*before, "fuse.json"])


def test_large_matrices_are_nearly_as_well_held() -> None:
    """A sketch misses at most a thousandth more than the best matrix of that rank."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 1100, generator=generator))[0] for n in (1300, 1100))
    values = torch.arange(1, 1101.0) ** -0.7
    matrix = (left * values) @ right.T
    up, down = low_rank(matrix, 8)
    assert up.shape == (1300, 8) and down.shape == (8, 1100)
    best = values[8:].double().square().sum().sqrt()
    missed = torch.linalg.vector_norm(matrix.double() - up.double() @ down.double())
    assert best * 0.999 < missed < best * 1.001
    again = low_rank(matrix, 8)
    assert torch.equal(up, again[0]) and torch.equal(down, again[1])
