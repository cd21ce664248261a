"""The language model of Llama 3.2 Vision: some layers attend to the image instead of the text.

The embedding has eight rows more than the vocabulary, for the image token and its padding; the head has not.
"""

from fuse.families.family import TextFamily
from fuse.families.text.llama import ATTENTION, MLP, NORMS, OUTER, ROPE_BUFFERS

SELF_ATTENTION = {name.replace("{n}", "{s}"): shape for name, shape in ATTENTION.items()}

CROSS_ATTENTION = {
    "model.layers.{c}.cross_attn.q_proj.weight": "Q D",
    "model.layers.{c}.cross_attn.k_proj.weight": "K D",
    "model.layers.{c}.cross_attn.v_proj.weight": "K D",
    "model.layers.{c}.cross_attn.o_proj.weight": "D Q",
    "model.layers.{c}.cross_attn.q_norm.weight": "H",
    "model.layers.{c}.cross_attn.k_norm.weight": "H",
    "model.layers.{c}.cross_attn_attn_gate": "1",
    "model.layers.{c}.cross_attn_mlp_gate": "1",
}

FAMILY = TextFamily(
    name="mllama",
    tensors={**OUTER, "model.embed_tokens.weight": "V+8 D", **SELF_ATTENTION, **CROSS_ATTENTION, **MLP, **NORMS},
    buffers=ROPE_BUFFERS,
    depth={"n": "num_hidden_layers", "c": "cross_attention_layers", "s": "!cross_attention_layers"},
    defaults={
        "mllama_text_model": {
            "hidden_size": 4096,
            "num_hidden_layers": 40,
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": None,
            "intermediate_size": 14336,
            "vocab_size": 128256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
    },
)
