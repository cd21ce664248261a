"""Gemma: LLaMA's tensors with heads of 256 whatever the hidden size, and the head tied to the embedding."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ATTENTION_BIAS, OUTPUT_BIAS, ROPE_BUFFERS, SWITCHES, TENSORS

FAMILY = TextFamily(
    name="gemma",
    tensors=TENSORS,
    optional={**ATTENTION_BIAS, **OUTPUT_BIAS},
    switches=SWITCHES,
    buffers=ROPE_BUFFERS,
    defaults={
        "gemma": {
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "intermediate_size": 24576,
            "vocab_size": 256000,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        }
    },
)
