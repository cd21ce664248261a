"""Cohere's Command R: attention and feed-forward side by side under one norm, and a tied head."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ATTENTION, ATTENTION_BIAS, MLP, OUTER, OUTPUT_BIAS, ROPE_BUFFERS, SWITCHES

PARALLEL = {**OUTER, **ATTENTION, **MLP, "model.layers.{n}.input_layernorm.weight": "D"}

COHERE = {
    "hidden_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": 22528,
    "vocab_size": 256000,
    "layer_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}

FAMILY = TextFamily(
    name="cohere",
    tensors=PARALLEL,
    optional={
        **ATTENTION_BIAS,
        **OUTPUT_BIAS,
        "model.layers.{n}.self_attn.q_norm.weight": "G H",  # use_qk_norm
        "model.layers.{n}.self_attn.k_norm.weight": "N H",
    },
    switches={
        **SWITCHES,
        "use_qk_norm": ("model.layers.{n}.self_attn.q_norm.weight", "model.layers.{n}.self_attn.k_norm.weight"),
    },
    buffers=ROPE_BUFFERS,
    keys={"norm_eps": "layer_norm_eps"},
    symbols={"N": "num_key_value_heads|num_attention_heads"},
    defaults={"cohere": COHERE},
)
