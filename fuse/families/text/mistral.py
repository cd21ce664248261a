"""Mistral: LLaMA's tensors, without any bias."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ROPE_BUFFERS, TENSORS

FAMILY = TextFamily(
    name="mistral",
    tensors=TENSORS,
    buffers=ROPE_BUFFERS,
    defaults={
        "mistral": {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": None,
            "intermediate_size": 14336,
            "vocab_size": 32000,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
    },
)
