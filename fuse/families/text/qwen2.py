"""Qwen2, and the language models of Qwen2-VL and Qwen2.5-VL: LLaMA's tensors with biases on q, k and v."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ATTENTION_BIAS, ROPE_BUFFERS, TENSORS

_COMMON = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "head_dim": None,
}

FAMILY = TextFamily(
    name="qwen2",
    tensors={**TENSORS, **ATTENTION_BIAS},
    buffers=ROPE_BUFFERS,
    defaults={
        "qwen2": {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 22016,
            "vocab_size": 151936,
            **_COMMON,
        },
    },
)
