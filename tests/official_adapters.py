"""Files of LLaMA-Adapter and of LoRA as their authors store them, random, for language models of any size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import nn

from fuse import families
from fuse.importers.llama_adapter import LINEARS
from tests.cli import fuse_forked

TINY = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 48, "vocab_size": 64,
}  # fmt: skip
WIDTH, LENGTH, HEADS, RANK = 24, 3, 4, 3
MODULES = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj"}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.3


def sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """[out, in] of every projection of a LLaMA, by the authors' names."""
    basis = families.basis_of(config, families.family_of(config, ""), "")
    width, inner = basis.hidden_size, basis.intermediate_size
    q, k = basis.heads * basis.head_dim, basis.kv_heads * basis.head_dim
    rows = {"q": (q, width), "k": (k, width), "v": (k, width), "o": (width, q), "down": (width, inner)}
    return {key: rows.get(name, (inner, width)) for key, name in LINEARS.items()}


def first(depth: int = 2, rows: int = 6, trained: int = 2, width: int = 32, heads: int = 4) -> dict[str, torch.Tensor]:
    """A file of version 1; gates below the trained layers have stayed 0."""
    gates = {
        f"layers.{i}.attention.gate": random(1, heads, 1, 1, seed=i) * (i >= depth - trained) for i in range(depth)
    }
    return {"adapter_query.weight": random(rows, width), **gates}


def second(config: Mapping[str, Any] = TINY, lora: bool = True, biases: bool = True) -> dict[str, torch.Tensor]:
    """The language side of a file of version 2, with prompts in every layer."""
    width, depth, heads = (config[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    found = {"adapter_query.weight": random(LENGTH * depth, width), "llama.norm.weight": 1 + random(width)}
    for i in range(depth):
        at = f"llama.layers.{i}"
        found[f"{at}.attention.gate"] = 1 + random(1, heads, 1, 1, seed=i)
        found[f"{at}.attention_norm.weight"] = 1 + random(width, seed=i)
        found[f"{at}.ffn_norm.weight"] = 1 + random(width, seed=9 + i)
        for name, (outputs, inputs) in sizes(config).items():
            part, _, matrix = name.partition(".")
            if lora:
                found[f"{at}.{part}.lora_{matrix}_l1.weight"] = random(RANK, inputs, seed=i)
                found[f"{at}.{part}.lora_{matrix}_l2.weight"] = random(outputs, RANK, seed=i)
            if biases and matrix not in ("wk", "wv"):
                found[f"{at}.{name}.bias"] = random(outputs, seed=i)
    return found


class Eyes(nn.Module):
    """The modules of the authors' multimodal model that see, under the names of its file."""

    def __init__(self, features: int, width: int = 32, inside: int = WIDTH) -> None:
        super().__init__()
        self.clip_proj, self.clip_proj_norm = nn.Linear(features, inside), nn.LayerNorm(inside)
        self.visual_query = nn.Embedding(LENGTH, inside)
        norm = nn.LayerNorm  # as timm 0.3.2 has it, which the authors ask for; today's timm has another eps
        self.visual_blocks = nn.ModuleList(Block(inside, HEADS, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(2))
        self.visual_proj, self.visual_proj_norm = nn.Linear(inside, width), nn.LayerNorm(width)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.4, generator=generator)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Visual prompts [B, LENGTH, width] of features [B, n, c]."""
        seen = self.clip_proj_norm(self.clip_proj(features))
        both = torch.cat([self.visual_query.weight.repeat(len(features), 1, 1), seen], 1)
        for block in self.visual_blocks:
            both = block(both)
        return self.visual_proj_norm(self.visual_proj(both[:, :LENGTH]))


def multimodal(config: Mapping[str, Any] = TINY, features: int = 8, inside: int = WIDTH) -> dict[str, torch.Tensor]:
    """A whole file of version 2."""
    return {**second(config), **Eyes(features, config["hidden_size"], inside).state_dict()}


def save_first(file: Path, config: Mapping[str, Any]) -> None:
    """Version 1 for a language model, with prompts in all layers but the lowest."""
    depth, width, heads = (config[k] for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    torch.save(first(depth, 10 * (depth - 1), depth - 1, width, heads), file)


def save_multimodal(file: Path, config: Mapping[str, Any], inside: int = WIDTH) -> None:
    """Version 2 for a language model, wrapped as the authors' files are. inside: width of the visual blocks."""
    torch.save({"model": multimodal(config, inside=inside), "config": {"w_bias": True}}, file)


def first_donor(folder: Path, config: Mapping[str, Any]) -> None:
    """The donor folder that `fuse import` makes of version 1."""
    save_first(folder.with_suffix(".pth"), config)
    _imported("llama_adapter", folder.with_suffix(".pth"), folder)


def multimodal_donor(folder: Path, config: Mapping[str, Any]) -> None:
    """The donor folder, projector and all, that `fuse import` makes of version 2."""
    save_multimodal(folder.with_suffix(".pth"), config)
    eps = config.get("rms_norm_eps", 1e-6)
    told = ("--set", f"visual_heads={HEADS}", "--set", f"norm_eps={eps}")
    _imported("llama_adapter", folder.with_suffix(".pth"), folder, *told)


def peft_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """LoRA as PEFT saves it, on queries, values and the MLP's last projection of a LLaMA."""
    folder.mkdir(parents=True)
    names, tensors = {name: key for key, name in LINEARS.items()}, {}
    for layer in range(config["num_hidden_layers"]):
        for linear, module in MODULES.items():
            outputs, inputs = sizes(config)[names[linear]]
            at = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{at}.lora_A.weight"] = random(RANK, inputs, seed=layer)
            tensors[f"{at}.lora_B.weight"] = random(outputs, RANK, seed=layer)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(told))


def llava_folder(folder: Path, config: Mapping[str, Any], width: int = 12) -> None:
    """LoRA as LLaVA publishes it, with a projector of an encoder whose tokens have `width` numbers."""
    from safetensors.torch import load_file

    peft_folder(folder, config)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    gives = config["hidden_size"]
    shapes = {"0.weight": (20, width), "0.bias": (20,), "2.weight": (gives, 20), "2.bias": (gives,)}
    beside = {f"base_model.model.model.mm_projector.{key}": random(*shape) for key, shape in shapes.items()}
    torch.save(beside, folder / "non_lora_trainables.bin")


def llava_donor(folder: Path, config: Mapping[str, Any]) -> None:
    """The donor folder, projector and all, that `fuse import` makes of a release of LLaVA."""
    llava_folder(folder.with_suffix(".release"), config)
    _imported("llava_lora", folder.with_suffix(".release"), folder)


def _imported(kind: str, *args: object) -> None:
    ran = fuse_forked("import", kind, *args)
    assert (ran.code, ran.err) == (0, ""), ran
