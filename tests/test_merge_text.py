"""LLM + LLM through the command line, against a float64 oracle and against mergekit's own output."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from tests.cli import fuse_here
from tests.members import perturbed, save_member, words

CONFIG = LlamaConfig(
    hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=80, bos_token_id=1, eos_token_id=2, max_position_embeddings=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 base and two fine-tunes, each a folder."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG)
    save_member(base, root / "base", dtype=torch.bfloat16)
    save_member(perturbed(base.float(), 1), root / "a", dtype=torch.bfloat16)
    save_member(perturbed(base.float(), 2), root / "b", dtype=torch.bfloat16)
    return root


def merge(root: Path, out: Path, language: str, base: bool = True, more: str = "") -> dict[str, torch.Tensor]:
    recipe = root / f"{out.name}.yaml"
    recipe.write_text(f"{'base: base' if base else ''}\nmembers: {{a: a, b: b}}\nlanguage: {language}\n{more}\n")
    ran = fuse_here("merge", recipe, out)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{out}: 39 tensors merged, 0 copied, ")
    return load_file(out / "model.safetensors")


def weights(root: Path, name: str) -> dict[str, np.ndarray]:
    return {k: v.double().numpy() for k, v in load_file(root / name / "model.safetensors").items()}


def position(name: str) -> float:
    layer = next((int(p) for p in name.split(".") if p.isdigit()), None)
    return layer / 3 if layer is not None else float("embed" not in name)


ORACLES = {
    "{method: linear, weights: {a: 3, b: 1}}": lambda n, z, a, b: (3 * a + b) / 4,
    "{method: linear, weights: {a: [0, 1], b: 1}, normalize: false}": lambda n, z, a, b: position(n) * a + b,
    "{method: linear, weights: {a: {'*.mlp.*': 2, '*': 1}, b: 1}}": lambda n, z, a, b: (
        (2 * a + b) / 3 if ".mlp." in n else (a + b) / 2
    ),
    "{method: task_arithmetic, weights: {a: 0.5, b: 0.25}}": lambda n, z, a, b: z + 0.5 * (a - z) + 0.25 * (b - z),
    "{method: dare_linear, weights: 0.5, density: 1}": lambda n, z, a, b: z + 0.5 * (a - z) + 0.5 * (b - z),
}


@pytest.mark.parametrize("language", ORACLES)
def test_agrees_with_the_oracle(family: Path, tmp_path: Path, language: str) -> None:
    merged = merge(family, tmp_path / "out", language, base="linear" not in language or "dare" in language)
    base, a, b = (weights(family, name) for name in ("base", "a", "b"))
    assert set(merged) == set(base)
    for name, tensor in merged.items():
        wanted = torch.from_numpy(ORACLES[language](name, base[name], a[name], b[name]))
        assert tensor.dtype == torch.bfloat16
        # one rounding to bf16 of a float32 result: within half a unit in the last place, plus float32 noise
        torch.testing.assert_close(tensor.double(), wanted, rtol=2**-8 * 1.001, atol=1e-7)


MERGEKIT = {
    "linear": ("{method: linear, weights: {a: 0.7, b: 0.3}}", {"weight": True}, {}),
    "gradient": ("{method: linear, weights: {a: [0.1, 0.9, 0.3], b: 0.5}}", {"weight": "gradient"}, {}),
    "slerp": ("{method: slerp, t: 0.3}", {}, {"t": 0.3}),
    "task_arithmetic": ("{method: task_arithmetic, weights: {a: 0.7, b: 0.3}}", {"weight": True}, {}),
    "ties": ("{method: ties, weights: {a: 0.7, b: 0.3}, density: 0.5}", {"weight": True, "density": 0.5}, {}),
    "dare_linear": ("{method: dare_linear, weights: {a: 0.7, b: 0.3}, density: 1}", {"weight": True, "density": 1.0}, {}),
    "dare_ties": ("{method: dare_ties, weights: {a: 0.7, b: 0.3}, density: 1}", {"weight": True, "density": 1.0}, {}),
}  # fmt: skip


def run_mergekit(family: Path, out: Path, kind: str) -> dict[str, torch.Tensor]:
    """mergekit's own pipeline on the same folders, computed and written in float32."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    _, per_model, shared = MERGEKIT[kind]
    numbers = {"a": 0.7, "b": 0.3}

    def parameters(name: str) -> dict[str, object]:
        values = {k: v for k, v in per_model.items() if k != "weight"}
        if per_model.get("weight") == "gradient":
            values["weight"] = [0.1, 0.9, 0.3] if name == "a" else 0.5
        elif "weight" in per_model:
            values["weight"] = numbers[name]
        return values

    config: dict[str, object] = {
        "merge_method": {"gradient": "linear"}.get(kind, kind),
        "models": [{"model": str(family / n), "parameters": parameters(n)} for n in ("a", "b")],
        "dtype": "float32",
    }
    if shared:
        config["parameters"] = shared
    if kind not in {"linear", "gradient"}:
        config["base_model"] = str(family / ("a" if kind == "slerp" else "base"))
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return load_file(out / "model.safetensors")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MERGEKIT)
def test_agrees_with_mergekit(family: Path, tmp_path: Path, kind: str) -> None:
    """In float32, where nothing hides; and the bf16 output is that result rounded once.

    Comparing after the rounding would count ties: with weights like 0.7 and bf16 inputs, many exact results lie half
    way between two bf16 numbers, and one unit of float32 decides (0.2% of the elements here).
    """
    language, base = MERGEKIT[kind][0], kind not in {"linear", "gradient", "slerp"}
    ours = merge(family, tmp_path / "ours", language, base, "output: {dtype: float32}")
    rounded = merge(family, tmp_path / "rounded", language, base)
    theirs = run_mergekit(family, tmp_path / "theirs", kind)
    assert set(ours) == set(theirs) == set(rounded)
    excluded = total = 0
    for name, tensor in ours.items():
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name
        if kind == "gradient" and name in {"model.norm.weight", "lm_head.weight"}:
            continue  # at the end of the depth for us, at its beginning for mergekit
        keep = torch.ones_like(tensor, dtype=torch.bool) if kind != "ties" else ~on_a_threshold(family, name)
        excluded += int((~keep).sum())
        total += tensor.numel()
        torch.testing.assert_close(tensor[keep], theirs[name][keep], rtol=1e-5, atol=1e-7)
    assert excluded < total // 20, f"{excluded} of {total} elements sit on a threshold"


def on_a_threshold(family: Path, name: str) -> torch.Tensor:
    """Elements whose task vector is exactly as large as the last one kept: mergekit cuts these arbitrarily."""
    base = load_file(family / "base" / "model.safetensors")[name].float()
    on = torch.zeros_like(base, dtype=torch.bool)
    for member in ("a", "b"):
        size = (load_file(family / member / "model.safetensors")[name].float() - base).abs()
        keep = max(1, int(0.5 * size.numel()))
        on |= size == size.flatten().sort(descending=True).values[keep - 1]
    return on


def test_output_loads_whole_and_runs(family: Path, tmp_path: Path) -> None:
    merge(family, tmp_path / "out", "{method: ties, weights: 1, density: 0.5}")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    ran = fuse_here("ask", tmp_path / "out", "w5 w6", "--max-tokens", 5, "--json")
    assert ran.code == 0 and json.loads(ran.out)["question"] == "w5 w6"


def test_shards_and_dtype(family: Path, tmp_path: Path) -> None:
    whole = merge(
        family, tmp_path / "whole", "{method: linear, weights: 1}", base=False, more="output: {dtype: float32}"
    )
    recipe = family / "sharded.yaml"
    recipe.write_text(
        "members: {a: a, b: b}\nlanguage: {method: linear, weights: 1}\noutput: {dtype: float32, shard_size: 60KB}\n"
    )
    assert fuse_here("merge", recipe, tmp_path / "sharded").code == 0
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and index["metadata"]["total_size"] == sum(t.numel() * 4 for t in whole.values())
    for file in files:
        for name, tensor in load_file(tmp_path / "sharded" / file).items():
            assert index["weight_map"][name] == file and torch.equal(tensor, whole[name])
    assert json.loads((tmp_path / "sharded" / "config.json").read_text())["dtype"] == "float32"


def test_same_bytes_every_time(family: Path, tmp_path: Path) -> None:
    recipe = family / "again.yaml"
    recipe.write_text(
        "base: base\nmembers: {a: a, b: b}\n"
        "language: {method: dare_ties, weights: 0.5, density: 0.3, seed: 7}\noutput: {shard_size: 90KB}\n"
    )
    for name in ("one", "two"):
        assert fuse_here("merge", recipe, tmp_path / name).code == 0
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert "fuse.json" in files and files == sorted(p.name for p in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_seed_changes_the_draw(family: Path, tmp_path: Path) -> None:
    one, two = (
        merge(family, tmp_path / s, f"{{method: dare_linear, weights: 1, density: 0.5, seed: {s}}}") for s in "12"
    )
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_stored_head_that_the_config_ties_is_untied(family: Path, tmp_path: Path) -> None:
    """The host stores a copy of its tied head; after the merge the two differ, and the config must say so."""
    for name in "ab":
        folder = tmp_path / name
        shutil.copytree(family / name, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    (tmp_path / "recipe.yaml").write_text("members: {a: a, b: b}\nlanguage: {method: slerp, t: [0, 1]}\n")
    assert fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_double_precision_rows_stay_as_they_are(family: Path, tmp_path: Path) -> None:
    base = LlamaForCausalLM(CONFIG)
    save_member(base, tmp_path / "host", words(78), {"<x>": 78, "<y>": 79}, torch.float64)
    save_member(perturbed(base, 1), tmp_path / "guest", words(78), {}, torch.float64)
    (tmp_path / "recipe.yaml").write_text(
        "members: {host: host, guest: guest}\nlanguage: {method: linear, weights: 0.5}\n"
    )
    assert fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out").code == 0
    out, host, guest = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "host", "guest"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert out[name].dtype == torch.float64 and torch.equal(out[name][78:], host[name][78:])
        torch.testing.assert_close(out[name][:78], (host[name][:78] + guest[name][:78]) / 2, rtol=0, atol=1e-15)


def test_t5_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )
    save_member(model, tmp_path / "a")
    save_member(perturbed(model, 1), tmp_path / "b")
    (tmp_path / "recipe.yaml").write_text("members: {a: a, b: b}\nlanguage: {method: linear, weights: [1, 2, 3]}\n")
    assert fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / "out").code == 0
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "out" / "README.md").read_text()
    ran = fuse_here("ask", tmp_path / "out", "w5 w6", "--max-tokens", 3)
    assert ran.code == 0, ran.err
