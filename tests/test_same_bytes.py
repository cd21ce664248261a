"""The same recipe and members give the same bytes on every machine: hashes that were written down once."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli import fuse_here
from tests.members import save_tokenizer, words

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 80, "rms_norm_eps": 1e-5,
    "dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
LAYER = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (64, 64), "self_attn.v_proj": (64, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
    "input_layernorm": (64,), "post_attention_layernorm": (64,),
}  # fmt: skip
# method and parameters -> the first 16 digits of the sha256 of the output's weights
SAME = {
    "{method: linear, weights: {a: 0.6, b: 0.4}}": "568ba119d85186c3",
    "{method: slerp, t: 0.3}": "478c2ebe236ebfcc",
    "{method: task_arithmetic, weights: {a: 0.6, b: 0.4}}": "e004d292a9b6212a",
    "{method: ties, weights: {a: 0.6, b: 0.4}, density: 0.5}": "04a02945f4800e87",
    "{method: dare_ties, weights: 0.5, density: 0.5, seed: 7}": "5bef2caf9efe394e",
    "{method: della, weights: 0.5, density: 0.5, epsilon: 0.1, seed: 7}": "16995dba6dc7650c",
    "{method: breadcrumbs, weights: 0.5, density: 0.5, gamma: 0.05}": "8dfa227b4cfd881a",
    "{method: model_stock}": "41feb71bcef591b8",
    "{method: sce, select_topk: 0.5}": "0d9a14ddea5c325f",
}  # fmt: skip


def numbers(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers between -1 and 1 that only integer arithmetic made."""
    start = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little")
    drawn = (np.arange(np.prod(shape), dtype=np.uint64) * 2654435761 + start * 40503) % 65536
    return torch.from_numpy((drawn.astype(np.float32) - 32768) / 32768).reshape(shape)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("same")
    shapes = {"model.embed_tokens.weight": (80, 64), "lm_head.weight": (80, 64), "model.norm.weight": (64,)}
    shapes |= {f"model.layers.{n}.{name}.weight": shape for n in range(2) for name, shape in LAYER.items()}
    for seed, member in enumerate(("base", "a", "b")):
        (root / member).mkdir()
        (root / member / "config.json").write_text(json.dumps(CONFIG))
        save_tokenizer(root / member, words(80))
        tensors = {
            name: (numbers(0, name, shape) + (numbers(seed, name, shape) / 16 if seed else 0)).to(torch.bfloat16)
            for name, shape in shapes.items()
        }
        save_file(tensors, root / member / "model.safetensors", {"format": "pt"})
    return root


@pytest.mark.parametrize("language", SAME)
def test_weights(members: Path, tmp_path: Path, language: str) -> None:
    base = "" if "linear" in language or "slerp" in language else f"base: {members / 'base'}\n"
    (tmp_path / "recipe.yaml").write_text(
        f"{base}members: {{a: {members / 'a'}, b: {members / 'b'}}}\nlanguage: {language}\n"
    )
    found = set()
    for threads in (1, 4):
        ran = fuse_here("merge", tmp_path / "recipe.yaml", tmp_path / f"out{threads}", "--threads", threads)
        assert ran.code == 0, ran.err
        found.add(hashlib.sha256((tmp_path / f"out{threads}" / "model.safetensors").read_bytes()).hexdigest()[:16])
    assert found == {SAME[language]}
