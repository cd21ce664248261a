"""The authors' LLaMA as transformers' LlamaForCausalLM, and a float64 oracle of one of its blocks, for adapters' tests."""

import re

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fuse.importers.llama_adapter import LINEARS, halves

LAYER = re.compile(r"layers\.(\d+)\.")
MODULES = {
    **{f"attention.w{x}.weight": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
OUTER = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def converted(official: dict[str, torch.Tensor], heads: int, eps: float = 1e-5) -> LlamaForCausalLM:
    """The LLaMA of those weights (`layers.{i}.attention.wq.weight` ...) with the standard order of channels.

    What a single block lacks (embedding, head, last norm) is random or one; keys of adapters are passed over.
    """
    width = next(t.shape[1] for key, t in official.items() if key.endswith("wq.weight"))
    inner = next(t.shape[0] for key, t in official.items() if key.endswith("w1.weight"))
    layers = 1 + max(int(found[1]) for key in official if (found := LAYER.match(key)))
    rows = official["tok_embeddings.weight"].shape[0] if "tok_embeddings.weight" in official else 30
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=rows, rms_norm_eps=eps, max_position_embeddings=64, rope_theta=10000.0,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    state = model.state_dict()
    for key, value in official.items():
        name = OUTER.get(key, "")
        if found := LAYER.match(key):
            inside = MODULES.get(key[found.end() :])
            name = f"model.layers.{found[1]}.{inside}" if inside else ""
        if name:
            turned = re.search(r"w[qk]\.weight", key)
            state[name] = halves(value, width // heads) if turned else value
    model.load_state_dict(state)
    return model


def block_output(model: LlamaForCausalLM, x: torch.Tensor) -> torch.Tensor:
    """What the first block gives for its input x [B, L, D]."""
    kept: list[torch.Tensor] = []
    handle = model.model.layers[0].register_forward_hook(
        lambda _, args, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(inputs_embeds=x)
    handle.remove()
    return kept[0]


def adapter_keys(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a golden's block is an adapter's, not the base's."""
    linears = "|".join(key.replace(".", r"\.") for key in LINEARS)
    return {
        key: value
        for key, value in tensors.items()
        if not re.search(rf"({linears})\.weight$|tok_embeddings|^output|^norm\.weight", key)
    }
