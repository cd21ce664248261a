"""SmolLM3: LLaMA's tensors with a tied head; every fourth layer goes without positions."""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ATTENTION_BIAS, MLP_BIAS, OUTPUT_BIAS, ROPE_BUFFERS, SWITCHES, TENSORS

FAMILY = TextFamily(
    name="smollm3",
    tensors=TENSORS,
    optional={**ATTENTION_BIAS, **OUTPUT_BIAS, **MLP_BIAS},
    switches={**SWITCHES, "mlp_bias": tuple(MLP_BIAS)},
    buffers=ROPE_BUFFERS,
    defaults={
        "smollm3": {
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": None,
            "intermediate_size": 11008,
            "vocab_size": 128256,
            "rms_norm_eps": 1e-6,
            "rope_theta": 2000000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        }
    },
)
