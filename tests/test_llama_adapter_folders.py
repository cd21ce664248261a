"""The authors' numbers of LLaMA-Adapter from a file in their layout through import, merge and the loaded folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fuse.ask import load
from tests import recipe_members, tiny_processors
from tests.cli import fuse_forked, fuse_here
from tests.official_adapters import HEADS, Eyes, random
from tests.official_llama import adapter_keys, converted
from tests.original_branches import difference, golden, picture

FIRST = 10  # the row of the embedding that the first token of a golden has; those before it are special tokens
LANGUAGE = {"method": "linear", "weights": {"llm": 1}}
EYES = [{"name": "clip", "encoder": "clip", "projector": "donor"}]


def official(tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """A golden's parameters, `prefix` in front of those of its only block."""
    return {prefix + key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")}


def save_host(folder: Path, weights: dict[str, torch.Tensor], embedding: torch.Tensor) -> None:
    """The base as a folder of transformers, with a tokenizer; rows from FIRST on are those of the embedding, others random."""
    words = tiny_processors.tokenizer()
    rows = random(len(words), embedding.shape[1])
    rows[FIRST : FIRST + len(embedding)] = embedding
    known = {**weights, "tok_embeddings.weight": rows}
    if "output.weight" in weights:
        known["output.weight"] = torch.zeros_like(rows)
        known["output.weight"][FIRST : FIRST + len(embedding)] = weights["output.weight"]
    converted(known, HEADS).save_pretrained(folder)
    words.save_pretrained(folder)


def made(folder: Path, *options: str, **told: Any) -> Any:
    """Import adapter.pth for the host, merge a recipe with it, load what was written."""
    settings = [part for option in options for part in ("--set", option)]
    ran = fuse_forked(
        "import", "llama_adapter", folder / "adapter.pth", folder / "donor", "--host", folder / "llm", *settings
    )
    assert (ran.code, ran.err) == (0, ""), ran
    recipe = {"members": {"llm": {"path": "llm"}}, "language": LANGUAGE, **told}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    ran = fuse_here("merge", folder / "recipe.json", folder / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    return load(folder / "out")


@torch.no_grad()
def test_version_1_in_the_inference_file(tmp_path: Path) -> None:
    """Logits of a prompt, and of one more token behind it, with the cache."""
    tensors, facts = golden("llama_adapter_v1_inference")
    weights = official(tensors)
    save_host(tmp_path / "llm", weights, weights["tok_embeddings.weight"])
    adapter = {k: v for k, v in weights.items() if k == "adapter_query.weight" or k.endswith(".gate")}
    torch.save(adapter, tmp_path / "adapter.pth")
    length = facts["constructor"]["adapter_len"]
    model = made(tmp_path, f"length={length}", grafts=[{"from": "donor", "gate": "raw"}]).model
    rows = slice(FIRST, FIRST + facts["constructor"]["vocab_size"])
    first = model(tensors["input.tokens"] + FIRST, use_cache=True)
    then = model(tensors["input.next_token"] + FIRST, past_key_values=first.past_key_values)
    assert difference(first.logits[:, -1, rows], tensors["output.last_logits"]) <= float(facts["tolerance"])
    assert difference(then.logits[:, -1, rows], tensors["output.next_logits"]) <= float(facts["tolerance"])


@torch.no_grad()
@pytest.mark.parametrize(("gate", "output"), [("tanh", "with_adapter"), ("tanh_float16", "with_adapter_fp16gate")])
def test_version_1_in_the_training_file(gate: str, output: str, tmp_path: Path) -> None:
    tensors, facts = golden("llama_adapter_v1_block_tanh")
    weights = official(tensors, "layers.0.")
    x = tensors["input.x"]
    save_host(tmp_path / "llm", weights, x.flatten(0, 1))
    torch.save({**adapter_keys(weights), "adapter_query.weight": tensors["input.adapter"][0]}, tmp_path / "adapter.pth")
    model = made(tmp_path, grafts=[{"from": "donor", "gate": gate}]).model
    ids = FIRST + torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2])
    assert difference(block_output(model, input_ids=ids), tensors[f"output.{output}"]) <= float(facts["tolerance"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama_adapter_v2_block", "llama_adapter_v2_block_plain"])
@pytest.mark.parametrize("which", ["", "_len1"])
def test_version_2_with_an_image_in_each_prompt(name: str, which: str, tmp_path: Path) -> None:
    """The golden has prompts for each sample: they stand for what an image becomes (tests/test_llama_adapter_cli.py).

    Behind the two rows comes one without an image, whose words are those of the first and whose prompts are all 0.
    """
    tensors, facts = golden(name)
    weights, x = official(tensors, "layers.0."), tensors["input.x"]
    save_host(tmp_path / "llm", {**weights, **gains(weights)}, x.flatten(0, 1))
    prompts = tensors[f"input.adapter{which}"]
    count, width = prompts.shape[1:]
    seeing = {**Eyes(8, width).state_dict(), "visual_query.weight": torch.zeros(count, 24)}
    adapter = {f"llama.{key}": value for key, value in adapter_keys(weights).items()}
    torch.save(
        {"model": {**seeing, **adapter, "adapter_query.weight": torch.zeros(count, width)}}, tmp_path / "adapter.pth"
    )
    recipe_members.save_encoder(tmp_path / "clip")
    out = made(tmp_path, f"visual_heads={HEADS}", vision=EYES, grafts=[{"from": "donor", "name": "eyes"}])
    config = out.model.config.grafts[0]["config"]
    assert bool(config["linears"]) == config["new_gate"] == facts["constructor"]["w_lora"]
    order: list[torch.Tensor] = []
    out.model.grafts["eyes"].visual.forward = lambda features: (order.append(features), prompts[[len(order) - 1]])[1]
    words = " ".join(f"w{n}" for n in range(5, 5 + x.shape[1]))
    token = out.processor.image_token
    texts, photos = [f"{token} {words}", f"{token} {words}", words], [[picture(60, 40, 1)], [picture(60, 40, 2)], []]
    given = out.processor(text=texts, images=photos, padding_side="left")
    is_word = given["attention_mask"].bool() & (given["input_ids"] != out.model.config.branches[0]["token_id"])
    ids = FIRST + torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2])
    given["input_ids"][is_word] = torch.cat([ids, ids[:1]]).flatten()
    found = block_output(out.model, **given)[is_word].view(3, *x.shape[1:])
    assert len(order) == 2 and not torch.equal(*order)
    assert difference(found[:2], tensors[f"output.with_adapter{which}"]) <= float(facts["tolerance"])
    if which == "":  # values of 0 add nothing, whatever the gate
        assert difference(found[2], tensors["output.without_adapter"][0]) <= float(facts["tolerance"])


def gains(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Other norms than the file's: the adapter brings its own."""
    return {key: torch.full_like(value, 0.3) for key, value in weights.items() if "_norm.weight" in key}


def block_output(model: Any, **given: Any) -> torch.Tensor:
    """What the language model's first block gives."""
    kept: list[torch.Tensor] = []
    handle = (
        model.get_decoder()
        .layers[0]
        .register_forward_hook(lambda _, args, out: kept.append(out[0] if isinstance(out, tuple) else out))
    )
    model(**given)
    handle.remove()
    return kept[-1]
