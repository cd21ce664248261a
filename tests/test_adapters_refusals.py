"""Adapters that do not fit, are not whole, or ask for more than fuse reads: one sentence each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cli import fuse_here
from tests.members import save_member

Q = "base_model.model.model.layers.0.self_attn.q_proj"
FITS = "(is it an adapter of this base?)"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
PARTS = {f"{Q}.lora_A.weight": torch.ones(4, 32), f"{Q}.lora_B.weight": torch.ones(32, 4)}
LOHA = {"peft_type": "LOHA", "r": 2, "alpha": 4}
LOKR = {"peft_type": "LOKR", "r": 2, "alpha": 4}
TABLE = "base_model.model.model.embed_tokens"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    told = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    save_member(LlamaForCausalLM(LlamaConfig(**told, vocab_size=64)), folder / "base")
    return folder


def adapter(place: Path, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> Path:
    folder = place / "adapter"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG if config is None else config))
    save_file(PARTS if tensors is None else tensors, folder / "adapter_model.safetensors")
    member = {"base": "base", "adapter": "adapter"}
    recipe = {"members": {"a": member}, "language": {"method": "linear", "weights": {"a": 1}}}
    (place / "recipe.json").write_text(json.dumps(recipe))
    return folder


def said(place: Path, verb: str = "plan") -> tuple[int, str]:
    ran = fuse_here(verb, place / "recipe.json", *([place / "out"] if verb == "merge" else []))
    assert not (place / "out").exists()
    return ran.code, ran.err.removeprefix(f"fuse: {place / 'adapter'}").removesuffix("\n")


def test_a_small_one_is_planned_without_torch(place: Path) -> None:
    adapter(place)
    assert said(place) == (0, "")
    code = "import sys, fuse.cli; sys.argv = ['fuse', 'plan', sys.argv[1]]\ntry: fuse.cli.main()\nexcept SystemExit: pass\nassert not {'torch', 'numpy'} & set(sys.modules)"
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code, str(place / "recipe.json")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


CASES: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "another kind": ({"peft_type": "OFT"}, PARTS, ": adapter_config.json: peft_type is 'OFT', and fuse reads LORA, IA3, LOHA, LOKR, LN_TUNING, TRAINABLE_TOKENS"),
    "no kind": ({}, PARTS, ": adapter_config.json: peft_type is missing, and fuse reads LORA, IA3, LOHA, LOKR, LN_TUNING, TRAINABLE_TOKENS"),
    "more than is read": (CONFIG | {"layer_replication": [[0, 2], [1, 2]]}, PARTS, ": adapter_config.json: layer_replication is [[0, 2], [1, 2]], which fuse does not read (merge it into its base with PEFT first)"),
    "another start": (CONFIG | {"init_lora_weights": "pissa"}, PARTS, ": adapter_config.json: init_lora_weights is 'pissa', which changes the base's weights (save the adapter converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion))"),
    "no rank": ({k: v for k, v in CONFIG.items() if k != "r"}, PARTS, ": adapter_config.json: r is missing"),
    "no alpha": ({k: v for k, v in CONFIG.items() if k != "lora_alpha"}, PARTS, ": adapter_config.json: lora_alpha is missing"),
    "alpha is no number": (CONFIG | {"lora_alpha": "8"}, PARTS, ": adapter_config.json: the alpha of model.layers.0.self_attn.q_proj is '8', not a number below 1,000,000,000"),
    "another rank": (CONFIG | {"r": 8}, PARTS, ": model.layers.0.self_attn.q_proj has rank 4 and 4, and adapter_config.json says 8"),
    "no table": (CONFIG | {"rank_pattern": [4]}, PARTS, ": adapter_config.json: rank_pattern is [4], not a table"),
    "a number for a matrix": (CONFIG, {**PARTS, f"{Q}.lora_A.weight": torch.tensor(1.0)}, f": tensor '{Q}.lora_A.weight' has shape [], not two sizes"),
    "no B": (CONFIG, dict([*PARTS.items()][:1]), ": model.layers.0.self_attn.q_proj has lora_A and not lora_B"),
    "no A": (CONFIG, dict([*PARTS.items()][1:]), ": model.layers.0.self_attn.q_proj has lora_B and not lora_A"),
    "another base": (CONFIG, {**PARTS, f"{Q}.lora_A.weight": torch.ones(4, 48)}, f": tensor '{Q}.lora_A.weight' has shape [4, 48], and 'model.layers.0.self_attn.q_proj.weight' of the base, [32, 32], needs [4, 32] {FITS}"),
    "more layers": (CONFIG, {k.replace("layers.0", "layers.7"): v for k, v in PARTS.items()}, f": tensor '{Q.replace('layers.0', 'layers.7')}.lora_A.weight' changes model.layers.7.self_attn.q_proj, which the base does not have {FITS}"),
    "an unknown tensor": (CONFIG, {**PARTS, f"{Q}.lora_C.weight": torch.ones(4)}, f": tensor '{Q}.lora_C.weight' of the adapter has no place in the base"),
    "a whole tensor of another shape": (CONFIG, {**PARTS, "base_model.model.model.norm.weight": torch.ones(48)}, f": tensor 'base_model.model.model.norm.weight' has shape [48], and 'model.norm.weight' of the base [32] {FITS}"),
    "one tensor twice": (CONFIG, {**PARTS, f"{Q}.lora_A.default.weight": torch.ones(4, 32)}, f": tensors '{Q}.lora_A.default.weight' and '{Q}.lora_A.weight' are the same one"),
    "one tensor by two names": (CONFIG, {**PARTS, **{k.replace("model.model.", "model.", 1): v.clone() for k, v in PARTS.items()}}, f": tensor '{Q}.lora_A.weight' of the adapter is there twice, for 'model.layers.0.self_attn.q_proj.weight'"),
    "not floats": (CONFIG, {**PARTS, f"{Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)}, f"/adapter_model.safetensors: tensor '{Q}.lora_A.weight' has dtype I8, not floats"),
    "no magnitude": (CONFIG | {"use_dora": True}, PARTS, ": model.layers.0.self_attn.q_proj has no lora_magnitude_vector, and adapter_config.json says use_dora"),
    "a bias that is not there": (CONFIG | {"lora_bias": True}, {**PARTS, f"{Q}.lora_B.bias": torch.ones(32)}, f": tensor '{Q}.lora_B.bias' changes a bias, and the base has none there"),
    "ia3 of another base": ({"peft_type": "IA3"}, {f"{Q}.ia3_l": torch.ones(48, 1)}, f": tensor '{Q}.ia3_l' has shape [48, 1], and 'model.layers.0.self_attn.q_proj.weight' of the base, [32, 32], needs [32, 1] {FITS}"),
    "half a loha": (LOHA, {f"{Q}.hada_w1_a": torch.ones(32, 2)}, ": model.layers.0.self_attn.q_proj has no hada_w2_a"),
    "half a lokr": (LOKR, {f"{Q}.lokr_w1": torch.ones(4, 4)}, ": model.layers.0.self_attn.q_proj has no lokr_w2_a"),
    "lokr of another base": (LOKR, {f"{Q}.lokr_w1": torch.ones(4, 4), f"{Q}.lokr_w2": torch.ones(9, 8)}, ": model.layers.0.self_attn.q_proj makes a change of [36, 32], and 'model.layers.0.self_attn.q_proj.weight' of the base is [32, 32]"),
    "lokr that is no product": (LOKR, {f"{Q}.lokr_w1": torch.ones(4, 4), f"{Q}.lokr_w2_a": torch.ones(8, 2), f"{Q}.lokr_w2_b": torch.ones(3, 8)}, ": model.layers.0.self_attn.q_proj has w2 of [8, 2] and [3, 8], which is no product"),
    "tokens beyond the table": ({"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 64]}, {f"{TABLE}.trainable_tokens_delta": torch.ones(2, 32)}, ": adapter_config.json: token 64 was trained, and 'model.embed_tokens.weight' of the base has 64 rows"),
    "tokens without numbers": ({"peft_type": "TRAINABLE_TOKENS"}, {f"{TABLE}.trainable_tokens_delta": torch.ones(2, 32)}, ": adapter_config.json: the trained tokens of model.embed_tokens are None, not a list of rows"),
    "a token twice": ({"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 3]}, {f"{TABLE}.trainable_tokens_delta": torch.ones(2, 32)}, ": adapter_config.json: the trained tokens of model.embed_tokens hold a row twice"),
    "a norm by lora": (CONFIG, {k.replace("self_attn.q_proj", "input_layernorm"): v for k, v in PARTS.items()}, ": changes 'model.layers.0.input_layernorm.weight', of shape [32], and fuse reads adapters of matrices (merge it into its base with PEFT first)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(place: Path, case: str) -> None:
    config, tensors, sentence = CASES[case]
    adapter(place, config, tensors)
    assert said(place) == (3, sentence)


def test_an_embedding_with_too_few_rows(place: Path) -> None:
    tables = {f"base_model.model.{name}.weight": torch.ones(60, 32) for name in ("model.embed_tokens", "lm_head")}
    adapter(place, None, {**PARTS, **tables})
    assert said(place) == (3, ": the base's tokenizer.json has 64 tokens, and the embedding has 60 rows (the adapter should hold the embedding that was resized (PEFT's save_embedding_layers))")  # fmt: skip


@pytest.mark.parametrize("part", ["A", "B"])
def test_numbers_that_are_not_finite_are_the_adapters(place: Path, part: str) -> None:
    bad = PARTS[f"{Q}.lora_{part}.weight"].clone()
    bad[3, 2] = float("nan")
    adapter(place, None, {**PARTS, f"{Q}.lora_{part}.weight": bad})
    at = 3 * bad.shape[1] + 2
    assert said(place, "merge") == (3, f"/adapter_model.safetensors: tensor '{Q}.lora_{part}.weight' of a.adapter holds nan at element {at} (the checkpoint is damaged; fuse writes nothing from it)")  # fmt: skip


def test_numbers_of_the_base_that_are_not_finite_are_the_bases(place: Path) -> None:
    adapter(place)
    held = load_file(place / "base" / "model.safetensors")
    good, name = held["model.layers.0.self_attn.q_proj.weight"], "model.layers.0.self_attn.q_proj.weight"
    bad = good.clone()
    bad[1, 5] = float("inf")
    save_file({**held, name: bad}, place / "base" / "model.safetensors", {"format": "pt"})
    code, err = said(place, "merge")
    save_file(held, place / "base" / "model.safetensors", {"format": "pt"})
    assert (code, err) == (3, f"fuse: {place / 'base' / 'model.safetensors'}: tensor '{name}' of a holds inf at element 37 (the checkpoint is damaged; fuse writes nothing from it)")  # fmt: skip


def _no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _beside(folder: Path) -> None:
    (folder / "non_lora_trainables.bin").write_bytes(b"\x80")


IMPORT = "(fuse import llava_lora FOLDER OUT, and name OUT as the adapter)"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_config, ": holds no adapter_config.json (an adapter is the folder that PEFT wrote)"),
        (_no_weights, ": holds no adapter_model.safetensors"),
        (_pickle, f": holds adapter_model.bin, a pickle, which only `fuse import` reads {IMPORT}"),
        (_beside, f": holds non_lora_trainables.bin, a pickle, which only `fuse import` reads {IMPORT}"),
    ],
)
def test_folders_that_are_not_whole(place: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(adapter(place))
    assert said(place) == (3, sentence)


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        ({"base": "base", "adapter": "nowhere"}, "recipe.json:1:36: members.a.adapter: 'nowhere' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
        ({"base": "nowhere", "adapter": "adapter"}, "recipe.json:1:20: members.a.base: 'nowhere' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
        ({"base": "base", "adapter": "recipe.json"}, "recipe.json:1:36: members.a.adapter: 'recipe.json' is not a folder (an adapter is the folder that PEFT wrote)"),
        ({"base": "base"}, "recipe.json:1:14: members.a: an adapter needs its base, and a base its adapter: {base: X, adapter: Y}"),
        ({"adapter": "adapter"}, "recipe.json:1:14: members.a: an adapter needs its base, and a base its adapter: {base: X, adapter: Y}"),
        ({"path": "base", "base": "base", "adapter": "adapter"}, "recipe.json:1:14: members.a: a member is a path, or a base and an adapter, each with a revision of its own"),
        ({"revision": "v1", "base": "base", "adapter": "adapter"}, "recipe.json:1:14: members.a: a member is a path, or a base and an adapter, each with a revision of its own"),
        ({"base": {"revision": "v1"}, "adapter": "adapter"}, "recipe.json:1:20: members.a.base.path: is missing"),
        ({}, "recipe.json:1:14: members.a.path: is missing"),
    ],
)  # fmt: skip
def test_recipes(place: Path, member: dict[str, Any], sentence: str) -> None:
    adapter(place)
    recipe = {"members": {"a": member}, "language": {"method": "linear", "weights": {"a": 1}}}
    (place / "recipe.json").write_text(json.dumps(recipe))
    ran = fuse_here("plan", place / "recipe.json")
    assert (ran.code, ran.err) == (2, f"fuse: {sentence}\n")


def test_an_ensemble_loads_what_lies_on_the_disk(place: Path) -> None:
    adapter(place)
    ran = fuse_here("ask", place / "recipe.json", "w5", "--ensemble")
    assert (ran.code, ran.err) == (2, "fuse: recipe.json:1:14: members.a: an ensemble loads members as they lie on the disk, and a is a base with an adapter (merge it into a folder first)\n")  # fmt: skip


def test_an_adapter_alone(place: Path) -> None:
    adapter(place)
    recipe = {"members": {"a": "adapter"}, "language": {"method": "linear", "weights": {"a": 1}}}
    (place / "recipe.json").write_text(json.dumps(recipe))
    assert said(place) == (3, ": this is an adapter, not a whole checkpoint (name its base too: {base: FOLDER, adapter: FOLDER})")  # fmt: skip
