"""Phi-3: LLaMA with q, k and v in one tensor, and gate and up in another."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import NORMS, OUTER, ROPE_BUFFERS

FAMILY = TextFamily(
    name="phi3",
    tensors={
        **OUTER,
        **NORMS,
        "model.layers.{n}.self_attn.qkv_proj.weight": "Q+2*K D",
        "model.layers.{n}.self_attn.o_proj.weight": "D Q",
        "model.layers.{n}.mlp.gate_up_proj.weight": "2*F D",
        "model.layers.{n}.mlp.down_proj.weight": "D F",
    },
    buffers=ROPE_BUFFERS,
    defaults={
        "phi3": {
            "hidden_size": 3072,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "intermediate_size": 8192,
            "vocab_size": 32064,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 4096,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
    },
)
