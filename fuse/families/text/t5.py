"""T5 and Flan-T5: an encoder and a decoder, positions as a bias learned in the first block of each."""

from fuse.families.family import TextFamily


def _attention(layer: str, name: str) -> dict[str, str]:
    return {
        f"{layer}.{name}.q.weight": "Q D",
        f"{layer}.{name}.k.weight": "K D",
        f"{layer}.{name}.v.weight": "K D",
        f"{layer}.{name}.o.weight": "D Q",
        f"{layer}.layer_norm.weight": "D",
    }


def _feed_forward(layer: str) -> dict[str, str]:
    return {f"{layer}.DenseReluDense.wo.weight": "D F", f"{layer}.layer_norm.weight": "D"}


def _feed_forward_inputs(layer: str) -> dict[str, str]:
    """One tensor, or two where `feed_forward_proj` is gated."""
    return {f"{layer}.DenseReluDense.{name}.weight": "F D" for name in ("wi", "wi_0", "wi_1")}


FAMILY = TextFamily(
    name="t5",
    embedding="shared.weight",
    tensors={
        "shared.weight": "V D",
        **_attention("encoder.block.{n}.layer.0", "SelfAttention"),
        **_feed_forward("encoder.block.{n}.layer.1"),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "B G",
        "encoder.final_layer_norm.weight": "D",
        **_attention("decoder.block.{m}.layer.0", "SelfAttention"),
        **_attention("decoder.block.{m}.layer.1", "EncDecAttention"),
        **_feed_forward("decoder.block.{m}.layer.2"),
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "B G",
        "decoder.final_layer_norm.weight": "D",
        "lm_head.weight": "V D",
    },
    optional={
        **_feed_forward_inputs("encoder.block.{n}.layer.1"),
        **_feed_forward_inputs("decoder.block.{m}.layer.2"),
    },
    one_of=(("wi",), ("wi_0", "wi_1")),
    buffers=(
        r"(encoder|decoder)\.embed_tokens\.weight",  # the same tensor as shared.weight, stored again
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # never read
    ),
    depth={"n": "num_layers", "m": "num_decoder_layers"},
    symbols={"m": "num_decoder_layers|num_layers", "B": "relative_attention_num_buckets"},
    keys={
        "hidden_size": "d_model",
        "layers": "num_layers",
        "heads": "num_heads",
        "head_dim": "d_kv",
        "intermediate_size": "d_ff",
        "norm_eps": "layer_norm_epsilon",
        "activation": "feed_forward_proj",
    },
    defaults={
        "t5": {
            "d_model": 512,
            "num_layers": 6,
            "num_decoder_layers": None,
            "num_heads": 8,
            "d_kv": 64,
            "d_ff": 2048,
            "relative_attention_num_buckets": 32,
            "vocab_size": 32128,
            "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": "relu",
            "tie_word_embeddings": True,
        }
    },
)
