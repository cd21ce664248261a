"""GPT-2: learned positions, biases everywhere, and Conv1D weights, which lie [in, out]."""

from fuse.families.family import TextFamily

FAMILY = TextFamily(
    name="gpt2",
    embedding="transformer.wte.weight",
    tensors={
        "transformer.wte.weight": "V D",
        "transformer.wpe.weight": "P D",
        "transformer.h.{n}.ln_1.weight": "D",
        "transformer.h.{n}.ln_1.bias": "D",
        "transformer.h.{n}.attn.c_attn.weight": "D 3*D",
        "transformer.h.{n}.attn.c_attn.bias": "3*D",
        "transformer.h.{n}.attn.c_proj.weight": "D D",
        "transformer.h.{n}.attn.c_proj.bias": "D",
        "transformer.h.{n}.ln_2.weight": "D",
        "transformer.h.{n}.ln_2.bias": "D",
        "transformer.h.{n}.mlp.c_fc.weight": "D F",
        "transformer.h.{n}.mlp.c_fc.bias": "F",
        "transformer.h.{n}.mlp.c_proj.weight": "F D",
        "transformer.h.{n}.mlp.c_proj.bias": "D",
        "transformer.ln_f.weight": "D",
        "transformer.ln_f.bias": "D",
        "lm_head.weight": "V D",
    },
    prefixes={  # the original GPT-2 files were saved without the head's class around them
        "h.": "transformer.h.",
        "wte.": "transformer.wte.",
        "wpe.": "transformer.wpe.",
        "ln_f.": "transformer.ln_f.",
    },
    buffers=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),  # the causal mask
    depth={"n": "n_layer"},
    symbols={"P": "n_positions"},
    keys={
        "hidden_size": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "intermediate_size": "n_inner",
        "norm_eps": "layer_norm_epsilon",
        "activation": "activation_function",
    },
    defaults={
        "gpt2": {
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": None,
            "n_positions": 1024,
            "vocab_size": 50257,
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
            "tie_word_embeddings": True,
        }
    },
)
