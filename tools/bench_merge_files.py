"""Writes a Llama of any size with random weights and fine-tunes of it, for tools/bench_merge.py."""

import json
import shutil
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import click
import torch

from fuse.errors import MachineError

SHARD = 1 << 30  # bytes of weights in one file
BLOCK = 4_194_301  # random numbers that repeat; a prime, so that no two tensors are the same
WEIGHT, DELTA, SHARED = 0.02, 1e-3, 0.5  # deviations of the base and of a fine-tune from it; the deltas' shared part
MEMBERS = ("base", "a", "b")
UNITS = {"B": 10**9, "M": 10**6, "K": 10**3}


@dataclass(frozen=True)
class Width:
    """Everything about a Llama but its number of layers."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def layer(self) -> dict[str, tuple[int, ...]]:
        """A layer's shapes, by the name behind its number."""
        inside, narrow = self.hidden, self.hidden // self.heads * self.kv_heads
        return {
            "input_layernorm": (inside,), "self_attn.q_proj": (inside, inside), "self_attn.k_proj": (narrow, inside),
            "self_attn.v_proj": (narrow, inside), "self_attn.o_proj": (inside, inside),
            "post_attention_layernorm": (inside,), "mlp.gate_proj": (self.intermediate, inside),
            "mlp.up_proj": (self.intermediate, inside), "mlp.down_proj": (inside, self.intermediate),
        }  # fmt: skip

    def layers(self, parameters: int) -> int:
        """How many come nearest to so many parameters."""
        outer = 2 * self.vocabulary * self.hidden + self.hidden
        return max(1, round((parameters - outer) / sum(map(prod, self.layer.values()))))

    def shapes(self, layers: int) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, in the order of the files."""
        table = (self.vocabulary, self.hidden)
        deep = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in self.layer.items()}
        named = {"model.embed_tokens": table, **deep, "model.norm": (self.hidden,), "lm_head": table}
        return {f"{name}.weight": shape for name, shape in named.items()}


# the least number of parameters -> the width; that of a billion is TinyLlama's, that of five is Llama 2 7B's
WIDTHS = {
    0: Width(64, 192, 4, 2, 256),
    10**7: Width(512, 1408, 8, 4, 8000),
    2 * 10**8: Width(1024, 2816, 16, 8, 32000),
    8 * 10**8: Width(2048, 5632, 32, 4, 32000),
    5 * 10**9: Width(4096, 11008, 32, 32, 32000),
}
MANY = Width(32, 32, 4, 2, 256), 2000  # 18,003 tensors


class Count(click.ParamType):
    """A number of parameters: 1B, 0.25B, 50M."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        try:
            count = int(float(text[:-1]) * UNITS[text[-1:].upper()])
        except (KeyError, ValueError):
            self.fail(f"{text!r} is no number of parameters such as 1B, 0.25B or 50M", param, ctx)
        return count if count > 0 else self.fail(f"{text!r} is not above zero", param, ctx)


def layout(parameters: int, many: bool) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The config.json, and the shape of every tensor; many: 18,003 tiny ones, whatever the number of parameters."""
    width, layers = MANY if many else (WIDTHS[max(least for least in WIDTHS if least <= parameters)], 0)
    layers = layers or width.layers(parameters)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width.hidden,
        "intermediate_size": width.intermediate, "num_hidden_layers": layers, "num_attention_heads": width.heads,
        "num_key_value_heads": width.kv_heads, "vocab_size": width.vocabulary, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return config, width.shapes(layers)


def write_members(
    folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], members: tuple[str, ...]
) -> None:  # fmt: skip
    """Folders of the base and the fine-tunes; those that are complete stay.

    Every weight is bf16, drawn from a normal distribution; a fine-tune is the base and a delta, a quarter of whose
    variance it shares with the other. The same folders hold the same numbers.
    """
    if wanted := [name for name in members if not (folder / name / "config.json").exists()]:
        folder.mkdir(parents=True, exist_ok=True)
        total = 2 * sum(map(prod, shapes.values())) * len(wanted)
        if shutil.disk_usage(folder).free < total:
            raise MachineError(f"the members take {total / 1e9:.1f} GB, and less is free", where=folder)
        drawn = draw()
        for name in wanted:
            write_member(folder / name, config, shapes, drawn[name])


def draw() -> dict[str, memoryview]:
    """The bytes of each member's block of numbers."""
    generator = torch.Generator().manual_seed(1)
    base, shared, *own = (torch.randn(BLOCK, generator=generator) for _ in range(4))
    blocks = {"base": base.mul_(WEIGHT).bfloat16()}
    for name, one in zip(MEMBERS[1:], own, strict=True):
        delta = (shared * SHARED + one * (1 - SHARED**2) ** 0.5) * DELTA
        blocks[name] = (blocks["base"].float() + delta).bfloat16()
    return {name: memoryview(block.view(torch.uint8).numpy()) for name, block in blocks.items()}


def write_member(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], drawn: memoryview) -> None:
    """Shards, their index, a tokenizer, and config.json at the end, by which a complete folder is known."""
    folder.mkdir(exist_ok=True)
    shards: list[list[str]] = [[]]
    room = SHARD
    for name, shape in shapes.items():
        room -= 2 * prod(shape)
        if room < 0 and shards[-1]:
            shards, room = [*shards, []], SHARD - 2 * prod(shape)
        shards[-1].append(name)
    files: dict[str, str] = {}
    at = 0
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files |= dict.fromkeys(names, file)
        at = write_shard(folder / file, {name: shapes[name] for name in names}, drawn, at)
    index = {"metadata": {"total_size": 2 * sum(map(prod, shapes.values()))}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(config["vocab_size"])))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def tokenizer(rows: int) -> dict[str, Any]:
    """A tokenizer.json of numbered words, one for each row of the embedding."""
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, rows))]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }  # fmt: skip


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], drawn: memoryview, at: int) -> int:
    """A safetensors file whose numbers are those from byte `at` on, again and again; gives where they end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while end:
            piece = drawn[at : at + end]
            file.write(piece)
            end, at = end - len(piece), (at + len(piece)) % len(drawn)
    return at
