"""Gemma 2: Gemma with a norm before and after the feed-forward block."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ATTENTION_BIAS, OUTPUT_BIAS, ROPE_BUFFERS, SWITCHES, TENSORS

FEEDFORWARD_NORMS = {
    "model.layers.{n}.pre_feedforward_layernorm.weight": "D",
    "model.layers.{n}.post_feedforward_layernorm.weight": "D",
}

GEMMA2 = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "vocab_size": 256000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}

FAMILY = TextFamily(
    name="gemma2",
    tensors={**TENSORS, **FEEDFORWARD_NORMS},
    optional={**ATTENTION_BIAS, **OUTPUT_BIAS},
    switches=SWITCHES,
    buffers=ROPE_BUFFERS,
    keys={"activation": "hidden_activation"},
    defaults={"gemma2": GEMMA2},
)
