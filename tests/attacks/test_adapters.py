"""Adapters as members, and names of members on the hub."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.harness import Attack, hold
from tests.attacks.making import Make, both, directory, fifo, file, link
from tests.attacks.scenes import ADAPTED, GONE, changed, gone, place, weights

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
AT = "base_model.model.model.layers.0.self_attn.q_proj"
TOLD, HELD = "ad/adapter_config.json", "ad/adapter_model.safetensors"


def adapter(folder: Path) -> None:
    """A good LoRA of rank 2, in `ad`."""
    import torch
    from safetensors.torch import save_file

    (folder / "ad").mkdir()
    (folder / TOLD).write_text(json.dumps(CONFIG))
    save_file({f"{AT}.lora_A.weight": torch.ones(2, 32), f"{AT}.lora_B.weight": torch.ones(32, 2)}, folder / HELD)


def told(**keys: Any) -> Make:
    return changed(TOLD, **keys)


def held(value: float) -> Make:
    def make(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file({key: one * value for key, one in load_file(folder / HELD).items()}, folder / HELD)

    return make


ADAPTERS: list[tuple[str, Make, int, str]] = [
    ("no kind", told(peft_type=GONE), 3, "ad: adapter_config.json: peft_type is missing, and fuse reads LORA, IA3, LOHA, LOKR, LN_TUNING, TRAINABLE_TOKENS"),
    ("a kind that changes more", told(peft_type="PROMPT_TUNING"), 3, "ad: adapter_config.json: peft_type is 'PROMPT_TUNING', and fuse reads LORA, IA3, LOHA, LOKR, LN_TUNING, TRAINABLE_TOKENS"),
    ("a rank below 0", told(r=-1), 3, "ad: model.layers.0.self_attn.q_proj has rank 2 and 2, and adapter_config.json says -1"),
    ("a rank of a billion", told(r=10**9), 3, "ad: model.layers.0.self_attn.q_proj has rank 2 and 2, and adapter_config.json says 1000000000"),
    ("an alpha beyond numbers", told(lora_alpha=1e300), 3, "ad: adapter_config.json: the alpha of model.layers.0.self_attn.q_proj is 1e+300, not a number below 1,000,000,000"),
    ("code to run", told(auto_map={"AutoModel": "x.Evil"}), 3, "ad: adapter_config.json: auto_map is {'AutoModel': 'x.Evil'}, which fuse does not read (merge it into its base with PEFT first)"),
    ("a pattern that takes for ever", told(rank_pattern={"^(([a-z_.0-9])+.)+[A-Z]([a-z])+$": 2}), 3, "ad: adapter_config.json: '^(([a-z_.0-9])+.)+[A-Z]([a-z])+$' of a pattern is not the name of a module (merge it into its base with PEFT first)"),
    ("weights of the base are changed at the start", told(init_lora_weights="pissa"), 3, "ad: adapter_config.json: init_lora_weights is 'pissa', which changes the base's weights (save the adapter converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion))"),
    ("a list as config", file(TOLD, "[]"), 3, "ad/adapter_config.json: holds a JSON list, not an object"),
    ("nested too deeply", file(TOLD, '{"r":' + "[" * 5000 + "]" * 5000 + "}"), 3, "ad/adapter_config.json: nested too deeply"),
    ("a pipe as config", fifo(TOLD), 3, "ad: holds no adapter_config.json (an adapter is the folder that PEFT wrote)"),
    ("a folder as weights", both(gone(HELD), directory(HELD)), 3, "ad: holds no adapter_model.safetensors"),
    ("weights by a link out", both(lambda folder: (folder / HELD).rename(folder / "x.safetensors"), link(HELD, "../x.safetensors")), 3, "ad/adapter_model.safetensors: is a link out of the folder, to ./x.safetensors"),
    ("a git-lfs pointer", file(HELD, "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 10\n"), 3, "ad/adapter_model.safetensors: this is a git-lfs pointer, not safetensors (run `git lfs pull` in that folder)"),
    ("no bytes", file(HELD, b""), 3, "ad/adapter_model.safetensors: 0 bytes is too short for a safetensors file"),
    ("a pickle", lambda folder: (folder / HELD).rename(folder / "ad/adapter_model.bin"), 3, "ad: holds adapter_model.bin, a pickle, which only `fuse import` reads (fuse import llava_lora FOLDER OUT, and name OUT as the adapter)"),
    ("NaN", held(float("nan")), 3, "ad/adapter_model.safetensors: tensor 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight' of a.adapter holds nan at element 0 (the checkpoint is damaged; fuse writes nothing from it)"),
    ("numbers whose product is none", held(3e38), 3, f"ad/adapter_model.safetensors: '{AT}.lora_A.weight' and '{AT}.lora_B.weight' of a.adapter make inf of tensor 'model.layers.0.self_attn.q_proj.weight' at element 0 (the adapter's numbers or its alpha are too large)"),
    ("a base that is damaged", weights("base", lambda t: t["model.layers.0.self_attn.q_proj.weight"].view(-1)[5:6].fill_(float("nan")) and None), 3, "base/model.safetensors: tensor 'model.layers.0.self_attn.q_proj.weight' of a holds nan at element 5 (the checkpoint is damaged; fuse writes nothing from it)"),
    ("half a tokenizer", file("ad/tokenizer.json", "{"), 3, "ad/tokenizer.json:1:2: not JSON: Expecting property name enclosed in double quotes"),
    ("an adapter as its own base", file("recipe.yaml", ADAPTED.replace("base: base", "base: ad")), 3, "ad: this is an adapter, not a whole checkpoint (name its base too: {base: FOLDER, adapter: FOLDER})"),
    ("a model as adapter", file("recipe.yaml", ADAPTED.replace("adapter: ad", "adapter: b")), 3, "b: holds no adapter_config.json (an adapter is the folder that PEFT wrote)"),
    ("an adapter as a member", file("recipe.yaml", "members: {a: ad}\nlanguage: {method: linear, weights: 1}\n"), 3, "ad: this is an adapter, not a whole checkpoint (name its base too: {base: FOLDER, adapter: FOLDER})"),
    ("a base of another width", both(weights("base", lambda t: {k: v for k, v in t.items() if "layers.1" not in k}), changed("base/config.json", num_hidden_layers=1), lambda folder: rename(folder, "layers.0", "layers.1")), 3, "ad: tensor 'base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight' changes model.layers.1.self_attn.q_proj, which the base does not have (is it an adapter of this base?)"),
]  # fmt: skip


def rename(folder: Path, old: str, new: str) -> None:
    from safetensors.torch import load_file, save_file

    save_file({key.replace(old, new): one for key, one in load_file(folder / HELD).items()}, folder / HELD)


NAMES: list[tuple[str, str, int, str]] = [
    ("a repository, and no network", "org/name", 4, "org/name: not a folder here, and the hub cannot be reached (LocalEntryNotFoundError) (download it where there is a network with `hf download org/name`, or give a local path)"),
    ("with a prefix", "hf://org/name", 4, "org/name: not a folder here, and the hub cannot be reached (LocalEntryNotFoundError) (download it where there is a network with `hf download org/name`, or give a local path)"),
    ("no name behind the prefix", "hf://", 2, "recipe.yaml:1:21: members.b: 'hf://' is no repository of the hub (such as hf://org/name)"),
    ("a path behind the prefix", "hf://../../etc", 2, "recipe.yaml:1:21: members.b: 'hf://../../etc' is no repository of the hub (such as hf://org/name)"),
    ("three parts", "org/name/more", 2, "recipe.yaml:1:21: members.b: 'org/name/more' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("an address", "https://huggingface.co/org/name", 2, "recipe.yaml:1:21: members.b: 'https://huggingface.co/org/name' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a file's address", "file:///etc", 2, "recipe.yaml:1:21: members.b: 'file:///etc' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a home", "~/x", 2, "recipe.yaml:1:21: members.b: '~/x' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a variable", "$HOME/x", 2, "recipe.yaml:1:21: members.b: '$HOME/x' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a way up", "../../../no/such", 2, "recipe.yaml:1:21: members.b: '../../../no/such' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a device", "/dev/zero", 2, "recipe.yaml:1:21: members.b: '/dev/zero' is not a folder (a member is the folder that holds config.json)"),
    ("an option", "-evil/x", 2, "recipe.yaml:1:21: members.b: '-evil/x' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("dots", "org/..", 2, "recipe.yaml:1:21: members.b: 'org/..' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("two dots inside", "org/a..b", 2, "recipe.yaml:1:21: members.b: 'org/a..b' is no hub id (org/name, of at most 96 letters)"),
    ("500 letters", "hf://org/" + "x" * 500, 2, "recipe.yaml:1:21: members.b: 'hf://org/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... does not exist (a name in it is too long for a disk)"),
    ("colours of a terminal", "org/na\x1b[31mme", 2, "recipe.yaml:1:21: members.b: 'org/na\\x1b[31mme' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a letter beyond ASCII", "org/\u00f1", 2, "recipe.yaml:1:21: members.b: 'org/ñ' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
]  # fmt: skip


@pytest.mark.parametrize("case", [Attack(*row[:1], row[1], *row[2:]) for row in ADAPTERS], ids=str)
def test_adapters(case: Attack, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family, ADAPTED)
    adapter(tmp_path)
    hold(case, tmp_path)


@pytest.mark.parametrize(("name", "location", "code", "sentence"), NAMES, ids=[row[0] for row in NAMES])
def test_names(name: str, location: str, code: int, sentence: str, family: Path, tmp_path: Path) -> None:
    members = json.dumps({"a": "a", "b": location})
    place(tmp_path, family, f"members: {members}\nlanguage: {{method: linear, weights: 0.5}}\n")
    hold(Attack(name, lambda folder: None, code, sentence), tmp_path)
