"""Gemma 3: Gemma 2 with Qwen3's norms on queries and keys, and a rotation for each kind of layer."""

from fuse.families.family import TextFamily
from fuse.families.text.gemma2 import FEEDFORWARD_NORMS, GEMMA2
from fuse.families.text.llama import ATTENTION_BIAS, OUTPUT_BIAS, ROPE_BUFFERS, SWITCHES, TENSORS
from fuse.families.text.qwen3 import HEAD_NORMS

FAMILY = TextFamily(
    name="gemma3",
    tensors={**TENSORS, **FEEDFORWARD_NORMS, **HEAD_NORMS},
    optional={**ATTENTION_BIAS, **OUTPUT_BIAS},
    switches=SWITCHES,
    buffers=ROPE_BUFFERS,
    keys={"activation": "hidden_activation"},
    defaults={
        "gemma3_text": {
            **GEMMA2,
            "vocab_size": 262208,
            "rope_theta": 1000000.0,  # full attention
            "rope_local_base_freq": 10000.0,  # sliding attention
        }
    },
)
