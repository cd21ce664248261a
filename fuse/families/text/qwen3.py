"""Qwen3, and the language model of Qwen3-VL: LLaMA's tensors with a norm on the queries and keys of each head."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ATTENTION_BIAS, OUTPUT_BIAS, ROPE_BUFFERS, SWITCHES, TENSORS

HEAD_NORMS = {
    "model.layers.{n}.self_attn.q_norm.weight": "H",
    "model.layers.{n}.self_attn.k_norm.weight": "H",
}

QWEN3 = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

FAMILY = TextFamily(
    name="qwen3",
    tensors={**TENSORS, **HEAD_NORMS},
    optional={**ATTENTION_BIAS, **OUTPUT_BIAS},
    switches=SWITCHES,
    buffers=ROPE_BUFFERS,
    defaults={"qwen3": QWEN3, "qwen3_vl_text": {**QWEN3, "rope_theta": 500000.0}},
)
