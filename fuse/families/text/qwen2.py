"""Qwen2, and the language models of Qwen2-VL and Qwen2.5-VL: LLaMA's tensors with biases on q, k and v."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ATTENTION_BIAS, ROPE_BUFFERS, TENSORS

QWEN2 = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

# The two VL classes have the numbers of the 72B models for defaults.
QWEN2_VL = {
    **QWEN2,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
}

FAMILY = TextFamily(
    name="qwen2",
    tensors={**TENSORS, **ATTENTION_BIAS},
    buffers=ROPE_BUFFERS,
    defaults={
        "qwen2": QWEN2,
        "qwen2_vl_text": QWEN2_VL,
        "qwen2_5_vl_text": QWEN2_VL,
        # configs of 2024 and 2025 on the Hub: one flat object under the model_type of the whole
        "qwen2_vl": QWEN2_VL,
        "qwen2_5_vl": QWEN2_VL,
    },
)
