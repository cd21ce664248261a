"""OPT: learned positions with two rows of padding; embeddings may be narrower than the layers (OPT-350m)."""

from fuse.families.family import TextFamily

_LAYER = "model.decoder.layers.{n}"
_SQUARE = [f"{_LAYER}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
_NORMS = [f"{_LAYER}.self_attn_layer_norm", f"{_LAYER}.final_layer_norm", "model.decoder.final_layer_norm"]

FAMILY = TextFamily(
    name="opt",
    embedding="model.decoder.embed_tokens.weight",
    tensors={
        "model.decoder.embed_tokens.weight": "V E",
        "model.decoder.embed_positions.weight": "P+2 D",
        **{f"{name}.weight": "D D" for name in _SQUARE},
        f"{_LAYER}.fc1.weight": "F D",
        f"{_LAYER}.fc2.weight": "D F",
        "lm_head.weight": "V E",
    },
    optional={
        "model.decoder.project_in.weight": "D E",
        "model.decoder.project_out.weight": "E D",
        **{f"{name}.bias": "D" for name in _SQUARE},
        f"{_LAYER}.fc1.bias": "F",
        f"{_LAYER}.fc2.bias": "D",
        **{f"{name}.weight": "D" for name in _NORMS},
        **{f"{name}.bias": "D" for name in _NORMS},
    },
    prefixes={"decoder.": "model.decoder."},  # the files of 2022 were saved without the head's class around them
    buffers=(r"model\.decoder\.version",),
    symbols={"E": "word_embed_proj_dim|hidden_size", "P": "max_position_embeddings"},
    keys={"intermediate_size": "ffn_dim", "activation": "activation_function"},
    defaults={
        "opt": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "ffn_dim": 3072,
            "word_embed_proj_dim": None,
            "max_position_embeddings": 2048,
            "vocab_size": 50272,
            "activation_function": "relu",
            "tie_word_embeddings": True,
        }
    },
)
