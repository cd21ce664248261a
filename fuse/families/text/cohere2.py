"""Cohere's Command R7B and Aya Vision: Command R with sliding layers."""

from fuse.families.family import TextFamily
from fuse.families.text.cohere import COHERE, PARALLEL
from fuse.families.text.llama import ATTENTION_BIAS, OUTPUT_BIAS, ROPE_BUFFERS, SWITCHES

FAMILY = TextFamily(
    name="cohere2",
    tensors=PARALLEL,
    optional={**ATTENTION_BIAS, **OUTPUT_BIAS},
    switches=SWITCHES,
    buffers=ROPE_BUFFERS,
    keys={"norm_eps": "layer_norm_eps"},
    defaults={"cohere2": {**COHERE, "rope_theta": 10000.0}},
)
