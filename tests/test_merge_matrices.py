"""The matrix methods through the command line: matrices, norms, and tables that `embeddings: base` leaves alone."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fuse.methods import METHODS, load
from fuse.recipe_merge import Merge
from tests.cli import fuse_here
from tests.members import perturbed, save_member

CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=80, bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
)  # fmt: skip
TABLES = {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes in float32, each a folder."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG)
    save_member(base, root / "base", dtype=torch.float32)
    for seed, name in enumerate("ab"):
        save_member(perturbed(base, seed), root / name, dtype=torch.float32)
    return root


def run(family: Path, verb: str, language: str, *more: object):
    recipe = family / "recipe.yaml"
    recipe.write_text(f"base: base\nmembers: {{a: a, b: b}}\nlanguage: {language}\n")
    return fuse_here(verb, recipe, *more)


SETTINGS = {
    "tsv": {"lambda": 0.5},
    "iso_c": {"lambda": 0.25},
    "wudi": {"steps": 3},
    "optmerge": {"variant": "modality", "steps": 5},
    "swudi": {"init": "mean", "time": 20, "ratio": 0.5},
    "aswudi": {"init": "zero", "rank": "cumvar", "share": 0.5},
}


@pytest.mark.parametrize("method", SETTINGS)
def test_as_the_function(family: Path, tmp_path: Path, method: str) -> None:
    language = json.dumps({"method": method, "embeddings": "base", **SETTINGS[method]})
    ran = run(family, "merge", language, tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    base, a, b = (load_file(family / name / "model.safetensors") for name in ("base", "a", "b"))
    arguments = METHODS[method].arguments(SETTINGS[method], 2)
    for name, tensor in merged.items():
        wanted = base[name] if name in TABLES else load(method)([a[name], b[name]], base[name], **arguments)
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)
        assert (name in TABLES) == torch.equal(tensor, base[name])


@pytest.mark.parametrize("method", SETTINGS)
def test_threads_do_not_change_a_byte(family: Path, tmp_path: Path, method: str) -> None:
    language = json.dumps({"method": method, **SETTINGS[method]})
    for threads in (1, 3):
        ran = run(family, "merge", language, tmp_path / f"{threads}", "--threads", threads)
        assert (ran.code, ran.err) == (0, "")
    one, three = ((tmp_path / threads / "model.safetensors").read_bytes() for threads in ("1", "3"))
    assert one == three


@pytest.mark.parametrize(("language", "told"), [
    ("{method: optmerge, variant: lore}", "fuse: recipe.yaml:3:30: language.variant: should be 'lora', 'full' or 'modality', not 'lore'"),
    ("{method: wudi, steps: 1.5}", "fuse: recipe.yaml:3:26: language.steps: should be a valid integer, not 1.5"),
    ("{method: swudi, ratio: 0}", "fuse: recipe.yaml:3:27: language.ratio: should be greater than 0, not 0.0"),
    ("{method: tsv, steps: 1}", "fuse: recipe.yaml:3:25: language.steps: tsv has no steps (it takes: lambda)"),
    ("{method: iso_c, weights: 1}", "fuse: recipe.yaml:3:27: language.weights: iso_c has no weights (it takes: lambda)"),
])  # fmt: skip
def test_what_a_recipe_may_not_say(family: Path, language: str, told: str) -> None:
    ran = run(family, "plan", language)
    assert (ran.code, ran.err.strip()) == (2, told)


@pytest.mark.parametrize(("method", "field"), [("optmerge", "variant"), ("swudi", "init"), ("aswudi", "rank")])
def test_the_schema_has_the_words_of_the_table(method: str, field: str) -> None:
    words = get_args(get_args(Merge.model_fields[field].annotation)[0])
    assert words == METHODS[method].params[field].choices
