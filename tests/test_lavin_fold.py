"""LaVIN's adapters folded into hosts: the native model gives what the graft gives for the modality of the fold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fuse.ask import load
from fuse.grafts import lavin_files
from fuse.grafts.graft import Reading
from fuse.grafts.lavin import LavinGraft
from fuse.grafts.lavin_fold import fixed_routes, fold
from fuse.grafts.lavin_fold_files import folds, host_config, what_stays, why_no_fold
from fuse.grafts.slots import slots_of
from tests import recipe_members, tiny_lavin
from tests.cli import fuse_here

COMMON = {"vocab_size": 24, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
HOSTS: dict[str, dict[str, Any]] = {
    "llama": {**WIDE, "num_key_value_heads": 2},
    "qwen2": {**WIDE, "num_key_value_heads": 2},
    "qwen3": {**WIDE, "num_key_value_heads": 2, "head_dim": 4},
    "gemma": {**WIDE, "num_key_value_heads": 2, "head_dim": 4},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4},
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24, "word_embed_proj_dim": 16},
}  # fmt: skip
CONFIG = {"hidden_size": 16, "layers": 2, "adapter_dim": 4, "groups": 2, "adapter_type": "attn", "temperature": 1.0}


def host(kind: str, **changes: Any) -> Any:
    config = AutoConfig.for_model(kind, **{**COMMON, **HOSTS[kind], **changes})
    model = AutoModelForCausalLM.from_config(config).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def donor(scope: str, modality: str, **options: Any) -> LavinGraft:
    config = lavin_files.configured({**CONFIG, "adapter_type": scope}, {"modality": modality, **options})
    graft = LavinGraft(config).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in graft.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return graft


def grafted(model: Any, graft: LavinGraft, ids: torch.Tensor) -> torch.Tensor:
    def run(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model.get_decoder()(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state

    slots, embed = slots_of(model), model.get_input_embeddings()
    graft.attach(slots)
    graft.state = graft.read(Reading(ids, torch.ones_like(ids), torch.zeros_like(ids), embed(ids), {}, embed, run))
    logits = model(ids).logits
    graft.state = {}
    for stack in slots.values():
        stack.remove()
    return logits


@pytest.mark.parametrize(
    ("kind", "scope"),
    [(kind, "attn") for kind in HOSTS] + [(kind, "block") for kind in ("llama", "gpt2", "opt")],
)  # fmt: skip
@pytest.mark.parametrize("modality", ["image", "text"])
@torch.no_grad()
def test_a_fold_is_the_graft(kind: str, scope: str, modality: str) -> None:
    model, graft, ids = host(kind), donor(scope, modality, adapter_scale=0.7), torch.tensor([[3, 9, 4, 1, 17]])
    graft.scale = 0.5
    told = model.config.to_dict()
    assert why_no_fold(graft.config, told) == ""
    wanted, plain = grafted(model, graft, ids), model(ids).logits
    routes, tensors, before = fixed_routes(graft, model), graft.state_dict(), model.state_dict()
    assert routes.shape == (2, 2 if scope == "block" else 1, 2)
    made = {
        name: fold(name, what, before, tensors, routes, 0.5 * 0.7) for name, what in folds(graft.config, told).items()
    }
    native = host(kind, **host_config(graft.config, told))
    missing, unexpected = native.load_state_dict(before | made, strict=False)
    assert not missing and not unexpected
    assert (native(ids).logits - wanted).abs().max() < 1e-11
    assert (plain - wanted).abs().max() > 1e-3
    assert torch.equal(model(ids).logits, plain)  # nothing of the graft stays on the host


@torch.no_grad()
def test_another_modality_is_another_fold() -> None:
    model = host("llama")
    image, text = (fixed_routes(donor("attn", modality), model) for modality in ("image", "text"))
    assert (image - text).abs().max() > 1e-3
    assert torch.allclose(image.sum(-1), torch.ones(2, 1, dtype=image.dtype), atol=1e-3)  # rounded to float16


def test_a_fold_in_bfloat16_is_rounded_once() -> None:
    model, graft = host("llama"), donor("attn", "image")
    routes, told = fixed_routes(graft, model), model.config.to_dict()
    small = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor.bfloat16() for name, tensor in graft.state_dict().items()}
    exact = {name: tensor.double() for name, tensor in small.items()}
    for name, what in folds(graft.config, told).items():
        found = fold(name, what, small, tensors, routes, 1.0)
        wanted = fold(name, what, exact, {key: tensor.double() for key, tensor in tensors.items()}, routes, 1.0)
        assert found.dtype == torch.bfloat16
        assert (found.double() - wanted).abs().max() <= 2**-8 * wanted.abs().max()


@pytest.mark.parametrize(
    ("config", "told", "why"),
    [
        ({}, {"model_type": "llama"}, "a fold knows one route: say `modality: image` or `modality: text`"),
        ({"modality": "text", "parts": "tower"}, {"model_type": "llama"}, "a vision tower's adapters stay: their routes follow every token"),
        ({"modality": "text"}, {"model_type": "mistral"}, "the adapters bring biases, and mistral has none behind the attention norm"),
        ({"modality": "text", "adapter_type": "block"}, {"model_type": "qwen2"}, "the adapters bring biases, and qwen2 has none behind the ffn norm"),
        ({"modality": "text"}, {"model_type": "opt", "enable_bias": False}, "the adapters bring biases, and this opt has none"),
        ({"modality": "text"}, {"model_type": "cohere"}, "cohere has no table of slots"),
    ],
)  # fmt: skip
def test_what_cannot_be_folded(config: dict[str, Any], told: dict[str, Any], why: str) -> None:
    assert why_no_fold({**CONFIG, **config}, told) == why


def test_a_tower_stays() -> None:
    tower = {"width": 8, "layers": 1, "adapter_dim": 4, "groups": 2, "visual_adapter_type": "router"}
    assert what_stays(CONFIG) is None
    left = what_stays({**CONFIG, "tower": tower})
    assert left is not None and all(name.startswith("tower.") for name in lavin_files.shapes(left))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA and a LaVIN donor for it."""
    folder = tmp_path_factory.mktemp("fold")
    recipe_members.save("llama", folder / "llm", 0)
    tiny_lavin.donor(folder / "donor", json.loads((folder / "llm" / "config.json").read_text()), scope="block")
    return folder


def merged(folder: Path, name: str, graft: dict[str, Any]) -> Any:
    recipe = {
        "members": {"llm": {"path": "llm"}}, "language": {"method": "linear", "weights": {"llm": 1}},
        "grafts": [{"from": "donor", "parts": "language", "scale": 0.5, **graft}],
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(recipe))
    return fuse_here("merge", folder / f"{name}.json", folder / name)


@pytest.mark.parametrize("modality", ["image", "text"])
@torch.no_grad()
def test_a_recipe_folds_it_into_a_plain_llama(place: Path, modality: str) -> None:
    for name, fold_it in ((f"folded_{modality}", True), (f"grafted_{modality}", False)):
        ran = merged(place, name, {"modality": modality, "fold": fold_it})
        assert (ran.code, ran.err) == (0, ""), ran
    ids = torch.tensor([[5, 9, 30, 12, 61]])
    native = AutoModelForCausalLM.from_pretrained(place / f"folded_{modality}").eval()
    assert type(native).__name__ == "LlamaForCausalLM" and native.config.mlp_bias
    wanted = load(place / f"grafted_{modality}").model(ids).logits
    rows = min(wanted.shape[-1], native.config.vocab_size)
    assert (native(ids).logits[..., :rows] - wanted[..., :rows]).abs().max() < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(place / "llm").eval()(ids).logits
    assert (plain[..., :rows] - wanted[..., :rows]).abs().max() > 1e-3


def test_a_recipe_must_say_which_modality_is_folded(place: Path) -> None:
    ran = merged(place, "both", {"fold": True})
    assert ran.code == 2 and "a fold knows one route: say `modality: image` or `modality: text`" in ran.err
    assert not (place / "both").exists()
