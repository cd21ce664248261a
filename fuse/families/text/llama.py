"""LLaMA and everything with its tensors: RMSNorm, rotary positions, a gated MLP, no biases unless the config asks."""

from fuse.families.family import TextFamily

ROPE_BUFFERS = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)

ATTENTION = {
    "model.layers.{n}.self_attn.q_proj.weight": "Q D",
    "model.layers.{n}.self_attn.k_proj.weight": "K D",
    "model.layers.{n}.self_attn.v_proj.weight": "K D",
    "model.layers.{n}.self_attn.o_proj.weight": "D Q",
}

ATTENTION_BIAS = {
    "model.layers.{n}.self_attn.q_proj.bias": "Q",
    "model.layers.{n}.self_attn.k_proj.bias": "K",
    "model.layers.{n}.self_attn.v_proj.bias": "K",
}

MLP = {
    "model.layers.{n}.mlp.gate_proj.weight": "F D",
    "model.layers.{n}.mlp.up_proj.weight": "F D",
    "model.layers.{n}.mlp.down_proj.weight": "D F",
}

NORMS = {
    "model.layers.{n}.input_layernorm.weight": "D",
    "model.layers.{n}.post_attention_layernorm.weight": "D",
}

OUTER = {
    "model.embed_tokens.weight": "V D",
    "model.norm.weight": "D",
    "lm_head.weight": "V D",
}

TENSORS = {**OUTER, **ATTENTION, **MLP, **NORMS}

OUTPUT_BIAS = {"model.layers.{n}.self_attn.o_proj.bias": "D"}

MLP_BIAS = {
    "model.layers.{n}.mlp.gate_proj.bias": "F",
    "model.layers.{n}.mlp.up_proj.bias": "F",
    "model.layers.{n}.mlp.down_proj.bias": "D",
}

SWITCHES = {"attention_bias": (*ATTENTION_BIAS, *OUTPUT_BIAS)}

FAMILY = TextFamily(
    name="llama",
    tensors=TENSORS,
    optional={**ATTENTION_BIAS, **OUTPUT_BIAS, **MLP_BIAS},
    switches={**SWITCHES, "mlp_bias": tuple(MLP_BIAS)},
    buffers=ROPE_BUFFERS,
    defaults={
        "llama": {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "intermediate_size": 11008,
            "vocab_size": 32000,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
    },
)
