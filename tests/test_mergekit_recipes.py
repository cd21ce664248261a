"""Recipes written for mergekit: fuse's output beside mergekit's own, and what is refused."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fuse.methods.table_foreign import FOREIGN, PREFIX
from tests import recipe_members, tiny_text
from tests.cli import fuse_here
from tests.members import perturbed, save_member, words
from tests.test_docs import ROOT, blocks, commands

CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=64, bos_token_id=1, eos_token_id=2, max_position_embeddings=128,
)  # fmt: skip
Weights = dict[str, torch.Tensor]
DTYPES = "dtype: float32\nout_dtype: bfloat16\n"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 base and fine-tunes, so that hardly any two changes are equal; `long` has two tokens more."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG)
    save_member(base, root / "base")
    for seed, name in enumerate("abc", 1):
        save_member(perturbed(base, seed), root / name, template="{{ messages }}" if name != "c" else "")
    longer = perturbed(base, 9)
    torch.manual_seed(1)
    longer.resize_token_embeddings(66, mean_resizing=False)
    save_member(longer, root / "long", words(64), {"<x>": 64, "<y>": 65})
    return root


def merge(root: Path, out: Path, text: str) -> Weights:
    recipe = root / f"{out.name}.yml"
    recipe.write_text(text)
    ran = fuse_here("merge", recipe, out)
    assert (ran.code, ran.err) == (0, "")
    return load_file(out / "model.safetensors")


def mergekits(root: Path, out: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """mergekit's own output for the same text."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    monkeypatch.chdir(root)  # where mergekit looks for folders
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(YAML(typ="safe").load(text)), str(out), options)
    return load_file(out / "model.safetensors")


def steps(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """How many bfloat16 numbers apart two tensors are, element by element; 0 within the noise of float32 sums."""
    assert ours.dtype == theirs.dtype == torch.bfloat16

    def place(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    noise = (ours.float() - theirs.float()).abs() < 2e-8
    return torch.where(noise, 0, (place(ours) - place(theirs)).abs())


TWO = """models:
  - model: a
    parameters: {weight: 0.7}
  - model: b
    parameters: {weight: 0.4}
"""
BARE = "models:\n  - model: a\n  - model: b\n"
ACCEPTED = {
    "linear": "merge_method: linear\n" + TWO,
    "linear not normalized": "merge_method: linear\nparameters: {normalize: false}\n" + TWO,
    "linear over a gradient": """merge_method: linear
models:
  - model: a
    parameters:
      weight:
        - {filter: mlp, value: [0.2, 1, 0.4]}
        - {filter: layers.1., value: 0.9}
  - model: b
    parameters: {weight: [0.1, 0.6]}
parameters: {weight: 0.25}
""",
    "linear with its base": "merge_method: linear\nbase_model: base\nparameters: {weight: 0.5}\n" + TWO,
    "slerp": "merge_method: slerp\nbase_model: b\nparameters: {t: 0.3}\n" + BARE,
    "slerp beyond its ends": "merge_method: slerp\nbase_model: a\nparameters: {t: 1.2}\n" + BARE,
    "slerp of one and its base": "merge_method: slerp\nbase_model: base\nparameters: {t: 0.3}\nmodels: [{model: a}]\n",
    "slerp over gradients": """merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [0, 4]}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
""",
    "nuslerp": "merge_method: nuslerp\n" + TWO,
    "nuslerp of task vectors": "merge_method: nuslerp\nbase_model: base\nparameters: {nuslerp_flatten: false, "
    "nuslerp_row_wise: true}\n" + TWO,
    "multislerp": "merge_method: multislerp\nbase_model: base\n" + TWO,
    "karcher": "merge_method: karcher\nparameters: {max_iter: 20, tol: 1.0e-6}\n" + BARE,
    "passthrough": "merge_method: passthrough\nmodels:\n  - model: a\n    parameters: {scale: {filter: o_proj, "
    "value: 0.5}}\nparameters: {scale: 1}\n",
    "model_stock": "merge_method: model_stock\nbase_model: base\n" + BARE + "  - model: c\n",
    "nearswap": "merge_method: nearswap\nbase_model: base\nparameters: {t: 0.01}\nmodels: [{model: a}]\n",
    "arcee_fusion": "merge_method: arcee_fusion\nbase_model: base\nmodels: [{model: a}]\n",
    "sce": "merge_method: sce\nbase_model: base\nparameters: {select_topk: 0.4, int8_mask: true}\n" + BARE,
    "ram": "merge_method: ram\nbase_model: base\nparameters: {epsilon: 0.001}\n" + BARE,
    "ramplus_tl": "merge_method: ramplus_tl\nbase_model: base\n" + BARE,
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: base\nparameters: {lambda: 0.8, density: 0.3}\n"
    + TWO,
    "ties": """merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: b
    parameters:
      density: 0.33
      weight: [{filter: mlp, value: 0.5}, {value: 0.1}]
parameters: {normalize: true, int8_mask: true}
""",
    "ties that rescales": "merge_method: ties\nbase_model: base\nparameters: {density: 0.5, rescale: true}\n" + TWO,
    "dare_linear": "merge_method: dare_linear\nbase_model: base\n" + TWO,
    "dare_ties": "merge_method: dare_ties\nbase_model: base\nparameters: {density: 1, normalize: true}\n" + TWO,
    "della": "merge_method: della\nbase_model: base\n" + TWO,
    "della_linear": "merge_method: della_linear\nbase_model: base\nparameters: {lambda: 0.5}\n" + TWO,
    "breadcrumbs": "merge_method: breadcrumbs\nbase_model: base\nparameters: {density: 0.6, gamma: 0.05}\n" + TWO,
    "breadcrumbs_ties": "merge_method: breadcrumbs_ties\nbase_model: base\n" + TWO,
    "stacked slices": """merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources:
      - {model: b, layer_range: [1, 4], parameters: {scale: [{filter: down_proj, value: [0, 1]}, {value: 1}]}}
""",
    "slices that are merged": """merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: [0.2, 0.8]}}
      - {model: b, layer_range: [1, 3], parameters: {weight: 0.5}}
  - parameters: {weight: {filter: layers.3, value: 3}}
    sources:
      - {model: b, layer_range: [3, 4]}
      - {model: a, layer_range: [2, 3], parameters: {weight: [0.2, 0.9]}}
parameters: {weight: 1}
""",
    "slices over a base": """merge_method: ties
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: c, layer_range: [0, 2], parameters: {weight: 0.2}}
      - {model: a, layer_range: [0, 2], parameters: {weight: 1, density: 0.5}}
  - sources:
      - {model: a, layer_range: [1, 4], parameters: {weight: [0.3, 1], density: 0.9}}
      - {model: b, layer_range: [1, 4], parameters: {weight: 0.3}}
      - {model: base, layer_range: [1, 4]}
""",
    "tokens of all": "merge_method: task_arithmetic\nbase_model: base\ntokenizer_source: union\nmodels:\n"
    "  - {model: long, parameters: {weight: 0.5}}\n  - {model: a, parameters: {weight: 0.4}}\n",
    "tokens of the base": "merge_method: task_arithmetic\nbase_model: base\ntokenizer: {source: base}\nmodels:\n"
    "  - {model: long, parameters: {weight: 0.5}}\n  - {model: a, parameters: {weight: 0.4}}\n",
    "tokens of one model": "merge_method: linear\ntokenizer_source: long\nmodels:\n"
    "  - {model: a, parameters: {weight: 0.5}}\n  - {model: long, parameters: {weight: 0.4}}\n",
}  # fmt: skip
# Two changes that are equal, or equally important but for float32, may change places: a share of the elements.
SELECTING = {"ties", "ties that rescales", "slices over a base", "breadcrumbs", "breadcrumbs_ties", "sce",
             "arcee_fusion"}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ACCEPTED)
def test_agrees_with_mergekit(family: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one rounding to bfloat16. dare and della at density 1, where they draw nothing."""
    text = ACCEPTED[kind] + DTYPES
    ours = merge(family, tmp_path / "ours", text)
    theirs = mergekits(family, tmp_path / "theirs", text, monkeypatch)
    assert ours.keys() == theirs.keys()
    far = total = near = 0
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape, name
        apart = steps(tensor, theirs[name])
        far, near, total = far + int((apart > 1).sum()), near + int((apart == 1).sum()), total + apart.numel()
    assert far <= (3e-4 * total if kind in SELECTING else 0), (far, near, total)
    assert near <= 0.005 * total, (far, near, total)


@pytest.mark.filterwarnings("ignore")
def test_of_changes_as_large_as_the_threshold_others_may_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between bfloat16 fine-tunes many are: as many are kept as by mergekit, and all others are the same."""
    text = (
        "merge_method: ties\nbase_model: zoo_base\ndtype: float32\n"
        "models: [{model: zoo_expert, parameters: {weight: [0.2, 0.8], density: 0.6}}]\n"
    )
    base, expert = (
        load_file(shutil.copytree(ROOT / "recipes" / "zoo" / name, tmp_path / f"zoo_{name}") / "model.safetensors")
        for name in ("base", "expert")  # mergekit remembers a folder by its name
    )
    ours = merge(tmp_path, tmp_path / "ours", text)
    theirs = mergekits(tmp_path, tmp_path / "theirs", text, monkeypatch)
    apart = total = 0
    for name, tensor in ours.items():
        other = ~torch.isclose(tensor, theirs[name], rtol=1e-6, atol=1e-7)
        change = (expert[name].float() - base[name].float())[other].abs()
        assert len(change.unique()) <= 1, name
        kept = [int((one[other] != base[name].float()[other]).sum()) for one in (tensor, theirs[name])]
        assert kept[0] == kept[1] == len(change) / 2, name
        apart, total = apart + len(change), total + tensor.numel()
    assert 0.001 < apart / total < 0.005  # docs/mergekit.md


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma2", "phi3", "opt"])
def test_filters_and_gradients_of_other_llms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = tiny_text.build(kind, bos_token_id=1, eos_token_id=2)
    for seed, name in enumerate(("base", "a", "b")):  # mergekit remembers a folder by its name
        save_member(perturbed(model, seed) if seed else model, tmp_path / f"{kind}_{name}")
    text = (
        f"merge_method: task_arithmetic\nbase_model: {kind}_base\nmodels:\n"
        f"  - {{model: {kind}_a, parameters: {{weight: [{{filter: attn, value: [0.2, 1]}}, {{value: [0.7, 0.3]}}]}}}}\n"
        f"  - {{model: {kind}_b, parameters: {{weight: [0.1, 0.9]}}}}\n{DTYPES}"
    )
    ours, theirs = merge(tmp_path, tmp_path / "ours", text), mergekits(tmp_path, tmp_path / "theirs", text, monkeypatch)
    assert ours.keys() == theirs.keys()
    assert all(int(steps(tensor, theirs[name]).max()) <= 1 for name, tensor in ours.items())


def test_slices_mean_what_they_say_behind_the_layers(family: Path, tmp_path: Path) -> None:
    """Where the last slice has more sources than the first, mergekit forgets some of them there."""
    slices = "slices:\n  - sources: [{model: a, layer_range: [0, 2]}]\n  - sources:\n" + "".join(
        f"      - {{model: {name}, layer_range: [2, 4]}}\n" for name in "ab"
    )
    out = merge(family, tmp_path / "out", "merge_method: linear\nparameters: {weight: 1}\n" + slices)
    a, b = (load_file(family / name / "model.safetensors") for name in "ab")
    torch.testing.assert_close(out["lm_head.weight"], (a["lm_head.weight"] + b["lm_head.weight"]) / 2)
    assert torch.equal(out["model.embed_tokens.weight"], a["model.embed_tokens.weight"])


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_what_is_drawn_at_random(family: Path, tmp_path: Path, method: str) -> None:
    """mergekit's draws hang on its seed and order, so only their kind is compared: a share, and the L1 norm restored."""
    text = (
        f"merge_method: {method}\nbase_model: base\nparameters: {{density: 0.6, weight: 1}}\nmodels: [{{model: a}}]\n"
    )
    out, base, a = (merge(family, tmp_path / "out", text), *(load_file(family / n / "model.safetensors") for n in
                    ("base", "a")))  # fmt: skip
    kept = {name: (out[name] != base[name]).float().mean().item() for name in out if out[name].ndim == 2}
    assert all(0.5 < share < 0.7 for share in kept.values()), kept
    for name in kept:
        torch.testing.assert_close((out[name] - base[name]).abs().sum(), (a[name] - base[name]).abs().sum())


KERNELS = {
    "linear": "linear of a + b [weights 0.7/0.4]",
    "slerp beyond its ends": "mergekit/slerp of b over base [t 1.2]",
    "slerp of one and its base": "slerp of base_model + a [t 0.3]",
    "ties that rescales": "mergekit/ties of a + b over base",
    "task_arithmetic": "task_arithmetic of a + b over base [weights 0.7/0.4, lambda 0.8]",
    "dare_linear": "dare_linear of a + b over base",
    "della": "mergekit/della of a + b over base",
    "breadcrumbs": "breadcrumbs of a + b over base",
    "breadcrumbs_ties": "mergekit/breadcrumbs_ties of a + b over base",
    "ram": "mergekit/ram of a + b over base",
}


@pytest.mark.parametrize("kind", KERNELS)
def test_fuses_own_method_where_it_means_the_same(family: Path, kind: str) -> None:
    (family / "recipe.yml").write_text(ACCEPTED[kind])
    ran = fuse_here("plan", family / "recipe.yml")
    assert (ran.code, ran.err) == (0, "")
    assert f" {KERNELS[kind]}" in ran.out


def test_the_output_is_the_bases_and_tells_the_recipe(family: Path, tmp_path: Path) -> None:
    text = "merge_method: linear  # words\nbase_model: b\nchat_template: auto\nparameters: {weight: 1}\n" + BARE
    merge(family, tmp_path / "out", text)
    told = json.loads((tmp_path / "out" / "fuse.json").read_text())
    assert told["recipe"] == text
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (family / "b" / "tokenizer.json").read_bytes()


def test_the_most_frequent_template(family: Path, tmp_path: Path) -> None:
    models = "models:\n" + "".join(f"  - model: {name}\n" for name in "cab")
    text = "merge_method: karcher\nchat_template: auto\n" + models
    merge(family, tmp_path / "out", text)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    (family / "recipe.yml").write_text("merge_method: karcher\n" + models)
    assert "c has none and the output will have none" in fuse_here("plan", family / "recipe.yml").out


def test_a_lora_is_an_adapter(family: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = LlamaForCausalLM.from_pretrained(family / "base", dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "lora")
    text = f"merge_method: passthrough\nmodels: [{{model: base+{tmp_path / 'lora'}}}]\n"
    out = merge(family, tmp_path / "out", text)
    for name, tensor in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(out[name], tensor)


LINEAR = "merge_method: linear\n"
OVER = "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\n"
ONE = "models: [{model: a}]\n"
REFUSED = {
    "merge_method: lineer\n" + ONE: "1:1: merge_method: unknown method 'lineer' (did you mean: linear)",
    "merge_method: ties\n" + ONE: "1:1: merge_method: ties needs a base_model",
    LINEAR: "1:1: merge_method: the recipe needs either models or slices",
    LINEAR + ONE: "2:10: models.0.parameters: a has no weight for lm_head.weight",
    LINEAR + "paramters: {}\n" + ONE: "2:1: paramters: unknown key (did you mean: parameters) (mergekit reads over keys "
    "that it does not know)",
    LINEAR + "modules: {text_decoder: {}}\n": "2:1: modules: means nothing here: fuse knows the parts of a checkpoint "
    "by itself (write a recipe with members and language; `vision` says what becomes of encoders)",
    LINEAR + "out_path: x\n" + ONE: "2:1: out_path: means nothing here: the output is named on the command line "
    "(leave it out)",
    LINEAR + "dtype: float64\n" + ONE: "2:1: dtype: should be bfloat16, float16 or float32, not 'float64'",
    LINEAR + "models: [{model: a, parameters: {weigth: 1}}]\n": "2:34: models.0.parameters.weigth: unknown parameter "
    "(did you mean: weight) (mergekit reads over keys that it does not know)",
    LINEAR + "parameters: {weight: 1, rescale: true}\n" + ONE: "2:25: parameters.rescale: unknown parameter (known: "
    "int8_mask, normalize, weight) (mergekit reads over keys that it does not know)",
    LINEAR + "models: [{model: a, parameters: {weight: 1, normalize: false}}]\n": "2:45: models.0.parameters.normalize: "
    "is one for all models, and mergekit does not read it here (write it under the recipe's own parameters)",
    LINEAR + "parameters: {weight: [{filter: mpl, value: 1}, {value: 2}]}\n" + ONE: "2:24: parameters.weight.0.filter: "
    "'mpl' is part of no tensor's name",
    LINEAR + "parameters: {weight: [{pattern: mlp, value: 1}]}\n" + ONE: "2:24: parameters.weight.0.pattern: unknown key "
    "(known: filter, value) (mergekit reads over keys that it does not know)",
    LINEAR + "parameters: {weight: [{filter: mlp, value: 1}]}\n" + ONE: "2:14: parameters.weight: a has no weight for "
    "lm_head.weight (a list of filters may end with a value alone, which fits all)",
    LINEAR + "parameters: {weight: heavy}\n" + ONE: "2:14: parameters.weight: should be a number, not 'heavy'",
    LINEAR + "parameters: {weight: [1, {value: 2}]}\n" + ONE: "2:26: parameters.weight.1: a list holds numbers, or "
    "tables of filter and value, not both",
    LINEAR + "parameters: {weight: 1, normalize: 2}\n" + ONE: "2:25: parameters.normalize: should be true or false, "
    "not 2",
    LINEAR + "parameters: {weight: 1}\nmodels: [{model: a}, {model: a}]\n": "3:23: models.1.model: the model stands here "
    "twice",
    LINEAR + "parameters: {weight: 1}\nmodels: [{model: gone}]\n": "3:11: models.0.model: 'gone' does not exist (a "
    "folder, relative to the recipe, or a hub id org/name)",
    LINEAR + "parameters: {weight: 1}\nmodels: [{model: a@main}]\n": "3:11: models.0.model: 'a' is a local folder and "
    "has no revision (leave `revision` out)",
    LINEAR + "parameters: {weight: 1}\nmodels: [{model: {model: a, override_architecture: X}}]\n": "3:29: "
    "models.0.model.override_architecture: means nothing here: fuse takes a checkpoint as its config describes it "
    "(leave it out)",
    OVER + "models: [{model: a, parameters: {density: 1.5}}]\n": "4:34: models.0.parameters.density: should be at most "
    "1, not 1.5",
    OVER + "models: [{model: base}]\n": "1:1: merge_method: ties merges nothing: the base_model is the only model",
    OVER + "slices: [{sources: [{model: a, layer_range: [0, 4]}]}]\n": "4:11: slices.0.sources: ties needs the "
    "base_model among them",
    OVER + "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: base, layer_range: [1, 3]}]}]\n": "4:32: "
    "slices.0.sources.0.layer_range: ties takes the base's layers of the same numbers, which are [1, 3]",
    LINEAR + "parameters: {weight: 1}\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: "
    "[1, 4]}]}]\n": "3:11: slices.0.sources: ranges that are merged have one length, and these have 2 layers and 3 layers",
    LINEAR + "parameters: {weight: 1}\nslices: [{sources: [{model: a, layer_range: [2, 7]}]}]\n": "3:32: "
    "slices.0.sources.0.layer_range: [2, 7] reaches beyond the 4 layers of a ([2, 4] ends with its last)",
    OVER + "slices: [{base_model: a, sources: [{model: base, layer_range: [0, 4]}]}]\n": "4:11: slices.0.base_model: "
    "differs from the recipe's base_model, and fuse has one base for all layers",
    OVER + "tokenizer: {source: union, pad_to_multiple_of: 8}\n" + ONE: "4:28: tokenizer.pad_to_multiple_of: means "
    "nothing here: fuse keeps the rows that the embedding has (leave it out)",
    OVER + "tokenizer: {tokens: {<x>: {source: a}}}\n" + ONE: "4:13: tokenizer.tokens: means nothing here: fuse takes the "
    "row of a token from whoever has it, without settings by token (leave it out)",
    OVER + "tokenizer_source: b\n" + ONE: "4:1: tokenizer_source: is none of the models (base, union or one of them)",
    OVER + "tokenizer_source: base\ntokenizer: {}\n" + ONE: "5:1: tokenizer: the recipe has a tokenizer_source, too "
    "(leave one of them out)",
    LINEAR + "tokenizer_source: union\nparameters: {weight: 1}\nmodels: [{model: a}, {model: long}, {model: longer}]\n":
    "2:1: tokenizer_source: mergekit makes up rows for 2 tokens such as '<x>', which long and longer have and a lacks, "
    "and merges them; fuse takes such a row from one member (write a recipe with members and language, whose "
    "`embeddings` says from whom)",
    OVER + "chat_template: chatml\n" + ONE: "4:1: chat_template: fuse takes the template of a member, or the most "
    "frequent one with `auto` (put another one into the output's chat_template.jinja)",
    LINEAR + "parameters: {weight: 1}\nmodels: [{model: eyes}]\n": "3:11: models.0.model: eyes can see, and a mergekit "
    "recipe does not say whose eyes to keep (write a recipe with members, language and vision)",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_refuses(family: Path, text: str) -> None:
    if not (family / "eyes").exists():
        recipe_members.save("llava", family / "eyes", 1)
        (family / "longer").symlink_to(family / "long")
    (family / "recipe.yml").write_text(text)
    ran = fuse_here("plan", family / "recipe.yml")
    assert (ran.code, ran.err) == (2, f"fuse: recipe.yml:{REFUSED[text]}\n")


def test_the_document(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/mergekit.md: its recipes and commands run, and its table names every method."""
    for seed, name in enumerate(("base", "math", "code")):
        recipe_members.save("llama", tmp_path / name, seed)
    for language, text in blocks("docs/mergekit.md"):
        if language == "yml":
            (tmp_path / text.split(maxsplit=2)[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    for line in commands("docs/mergekit.md"):
        ran = fuse_here(*shlex.split(line)[1:])
        assert (ran.code, ran.err) == (0, ""), line
    page = (ROOT / "docs/mergekit.md").read_text().partition("| method |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", page)) - {"density", "rescale"} == {name.removeprefix(PREFIX) for name in FOREIGN}
