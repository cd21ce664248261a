"""LoRA beside a host's projections and folded into them, against PEFT and against edited weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from fuse import families, strict_json
from fuse.families import Basis
from fuse.grafts import lora_files
from fuse.grafts.lora import LoraGraft
from fuse.grafts.lora_fold import fold
from fuse.grafts.lora_peft import CONFIG, WEIGHTS, read_peft
from fuse.grafts.slots import slots_of
from tests import tiny_text
from tests.original_branches import difference

TARGETS: dict[str, Any] = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["q_proj", "v_proj", "down_proj"],
    "gemma": ["q_proj", "o_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "opt": ["q_proj", "out_proj", "fc1", "fc2"],
    "t5": r".*(SelfAttention\.[qv]|DenseReluDense\.(wi|wo))",  # by names alone it would change cross-attention too
}
IDS = torch.tensor([[5, 9, 33, 21, 8]])


def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS} if model.config.model_type == "t5" else {}
    with torch.no_grad():
        return model(IDS, **more).logits


def trained(model: PreTrainedModel, folder: Path, **config: Any) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """PEFT's model, and the donor's config and tensors of what PEFT saves of it."""
    targets = config.pop("target_modules", TARGETS.get(model.config.model_type))
    config["fan_in_fan_out"] = model.config.model_type == "gpt2"
    peft: Any = get_peft_model(model, LoraConfig(target_modules=targets, **config)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.3, generator=generator)
    peft.save_pretrained(folder)
    saved = load_file(folder / WEIGHTS)
    donor, names = read_peft({k: tuple(v.shape) for k, v in saved.items()}, strict_json.read_object(folder / CONFIG))
    tensors = {name: saved[key] for key, name in names.items()}
    assert {k: tuple(v.shape) for k, v in tensors.items()} == lora_files.shapes(donor)
    return peft, donor, tensors


def basis(model: PreTrainedModel) -> Basis:
    told = model.config.to_dict()
    return families.basis_of(told, families.family_of(told, ""), "")


def grafted(model: Any, donor: dict[str, Any], tensors: dict[str, torch.Tensor], scale: float = 1.0) -> LoraGraft:
    graft = LoraGraft(donor).to(model.dtype)
    graft.load_state_dict(tensors)
    graft.scale = scale
    graft.attach(slots_of(model))
    return graft


@pytest.mark.parametrize("kind", TARGETS)
def test_on_every_architecture_it_computes_what_peft_computes(kind: str, tmp_path: Path) -> None:
    model = tiny_text.build(kind).double()
    peft, donor, tensors = trained(model, tmp_path, r=3, lora_alpha=7)
    wanted = logits(peft)
    host = tiny_text.build(kind).double()
    assert lora_files.why_not(donor, basis(host)) == ""
    before = logits(host)
    grafted(host, donor, tensors)
    assert difference(wanted, before) > 1e-2
    assert difference(logits(host), wanted) < 1e-12


@pytest.mark.parametrize("kind", TARGETS)
def test_folded_into_the_weights_it_computes_the_same(kind: str, tmp_path: Path) -> None:
    _, donor, tensors = trained(tiny_text.build(kind).double(), tmp_path, r=3, lora_alpha=7)
    beside, inside = tiny_text.build(kind).double(), tiny_text.build(kind).double()
    grafted(beside, donor, tensors, scale=0.4)
    weights = inside.state_dict()
    changes = lora_files.folds(donor, basis(inside), 0.4)
    for name, change in changes.items():
        weights[name].copy_(fold(weights[name], change, tensors))
    assert difference(logits(beside), logits(inside)) < 1e-12
    untouched = tiny_text.build(kind).double().state_dict()
    changed = {name for name, weight in weights.items() if not torch.equal(weight, untouched[name])}
    assert changed == set(changes)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 4, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3}, "alpha_pattern": {"v_proj": 30}},
        {"r": 4, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}},
        {"r": 2, "layers_to_transform": [1]},
    ],
)
def test_ranks_and_alphas_of_modules_are_those_of_peft(config: dict[str, Any], tmp_path: Path) -> None:
    peft, donor, tensors = trained(tiny_text.build("llama").double(), tmp_path, **config)
    host = tiny_text.build("llama").double()
    grafted(host, donor, tensors)
    assert difference(logits(host), logits(peft)) < 1e-12


def test_a_donor_with_separate_projections_fits_a_host_that_holds_them_in_one(tmp_path: Path) -> None:
    """A LLaMA's LoRA on Phi-3: the same numbers as on a LLaMA with Phi-3's weights."""
    llama, phi3 = (tiny_text.build(kind, rms_norm_eps=1e-5).double() for kind in ("llama", "phi3"))
    state = {}
    for name, value in phi3.state_dict().items():
        if "qkv_proj" in name:
            for part, rows in zip("qkv", value.split([32, 16, 16]), strict=True):
                state[name.replace("qkv", part)] = rows
        elif "gate_up_proj" in name:
            for part, rows in zip(("gate", "up"), value.chunk(2), strict=True):
                state[name.replace("gate_up", part)] = rows
        else:
            state[name] = value
    llama.load_state_dict(state)
    assert difference(logits(llama), logits(phi3)) < 1e-12
    peft, donor, tensors = trained(llama, tmp_path, r=2)
    assert lora_files.why_not(donor, basis(phi3)) == ""
    weights = {name: value.clone() for name, value in phi3.state_dict().items()}
    grafted(phi3, donor, tensors)
    assert difference(logits(phi3), logits(peft)) < 1e-12
    whole = tiny_text.build("phi3", rms_norm_eps=1e-5).double()
    for name, change in lora_files.folds(donor, basis(whole), 1.0).items():
        weights[name] = fold(weights[name], change, tensors)
    whole.load_state_dict(weights)
    assert difference(logits(whole), logits(peft)) < 1e-12


def test_a_fold_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 6, generator=generator).bfloat16()
    tensors = {name: torch.randn(*s, generator=generator).bfloat16() for name, s in (("up", (8, 2)), ("down", (2, 6)))}
    change = lora_files.Fold("down", "up", 0.3, (0, 8), (0, 8), False)
    exact = weight.double() + 0.3 * tensors["up"].double() @ tensors["down"].double()
    found = fold(weight, [change, change], tensors)
    twice = 2 * exact - weight.double()
    assert found.dtype == torch.bfloat16
    assert ((found.double() - twice).abs() <= twice.abs() * 2**-8).all()


def test_a_cached_step_and_bfloat16(tmp_path: Path) -> None:
    _, donor, tensors = trained(tiny_text.build("qwen3"), tmp_path, r=3)
    host = tiny_text.build("qwen3")
    grafted(host, donor, tensors)
    with torch.no_grad():
        first = host(IDS[:, :3], use_cache=True)
        then = host(IDS[:, 3:], past_key_values=first.past_key_values)
    assert difference(torch.cat([first.logits, then.logits], 1), logits(host)) < 1e-5
    half = tiny_text.build("qwen3").bfloat16()
    plain = logits(half).float()
    grafted(half, donor, {name: value.bfloat16() for name, value in tensors.items()})
    wanted = logits(host)
    assert difference(logits(half).float(), wanted) < 0.1 * difference(plain, wanted)


def test_scale_goes_with_the_change(tmp_path: Path) -> None:
    """Of one projection behind which nothing comes but the residual stream and the head: linear in the scale."""
    model = tiny_text.build("gpt2").double()
    _, donor, tensors = trained(model, tmp_path, r=3, target_modules=["h.1.mlp.c_proj"])
    found = []
    for scale in (0.0, 1.0, -2.0):
        host: Any = tiny_text.build("gpt2").double()
        host.transformer.ln_f = nn.Identity()
        grafted(host, donor, tensors, scale)
        found.append(logits(host))
    assert difference(found[2] - found[0], -2 * (found[1] - found[0])) < 1e-12
