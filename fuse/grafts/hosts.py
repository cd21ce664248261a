"""Where a graft finds its slots: for every host architecture, the names of the modules that a block is made of.

Tables of names, nothing else: torch and transformers are not imported here, so a plan can ask too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Norm = Literal["attention", "ffn"]
Linear = Literal["q", "k", "v", "o", "gate", "up", "down"]


@dataclass(frozen=True)
class Stack:
    """One stack of blocks. All paths but `blocks` and `final` are relative to a block.

    blocks: the list of blocks. final: the norm behind the last one, "" where it has none that every token passes.
    norms: a module that is read by attention, or by the MLP, alone. linears: the projections that a block has. fused:
    module -> the projections that it holds, in the order of its outputs. reads, gives: the module that takes what the
    MLP reads, and the one whose output is added to the residual stream (behind a layer scale).
    prefix: keys and values of prompts can be had from the block's own projections. query_norm, key_norm: norms of
    heads, before positions. rotary: queries get rotary positions (`use_rope: false` of a layer is obeyed). head_dim:
    name of the attention's attribute. flat: tensors inside the MLP are [B * L, width].
    """

    blocks: str
    final: str
    norms: Mapping[Norm, str]
    linears: Mapping[Linear, str]
    reads: str
    gives: str
    attention: str = ""
    fused: Mapping[str, tuple[Linear, ...]] = field(default_factory=dict)
    prefix: bool = True
    query_norm: str = ""
    key_norm: str = ""
    rotary: bool = True
    head_dim: str = "head_dim"
    flat: bool = False


LLAMA = Stack(
    blocks="model.layers",
    final="model.norm",
    norms={"attention": "input_layernorm", "ffn": "post_attention_layernorm"},
    linears={
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    },
    reads="mlp",
    gives="mlp",
    attention="self_attn",
)  # fmt: skip

QWEN3 = replace(LLAMA, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")

PHI3 = replace(
    LLAMA,
    linears={
        "q": "self_attn.qkv_proj", "k": "self_attn.qkv_proj", "v": "self_attn.qkv_proj", "o": "self_attn.o_proj",
        "gate": "mlp.gate_up_proj", "up": "mlp.gate_up_proj", "down": "mlp.down_proj",
    },
    fused={"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")},
)  # fmt: skip

GPT2 = Stack(
    blocks="transformer.h",
    final="transformer.ln_f",
    norms={"attention": "ln_1", "ffn": "ln_2"},
    linears={
        "q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn", "o": "attn.c_proj",
        "up": "mlp.c_fc", "down": "mlp.c_proj",
    },
    fused={"attn.c_attn": ("q", "k", "v")},
    reads="mlp",
    gives="mlp",
    attention="attn",
    rotary=False,
)  # fmt: skip

OPT = Stack(
    blocks="model.decoder.layers",
    final="model.decoder.final_layer_norm",
    norms={"attention": "self_attn_layer_norm", "ffn": "final_layer_norm"},
    linears={
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj",
        "up": "fc1", "down": "fc2",
    },
    reads="fc1",
    gives="fc2",
    attention="self_attn",
    rotary=False,
    flat=True,
)  # fmt: skip


def _t5(stack: str, ffn: str, gated: bool) -> Stack:
    """A stack of T5; `attention` is self-attention in the decoder too, `ffn` the number of the block's last layer."""
    own, dense = "layer.0.SelfAttention", f"{ffn}.DenseReluDense"
    wide: dict[Linear, str] = {"gate": f"{dense}.wi_0", "up": f"{dense}.wi_1"} if gated else {"up": f"{dense}.wi"}
    return Stack(
        blocks=f"{stack}.block",
        final=f"{stack}.final_layer_norm",
        norms={"attention": "layer.0.layer_norm", "ffn": f"{ffn}.layer_norm"},
        linears={"q": f"{own}.q", "k": f"{own}.k", "v": f"{own}.v", "o": f"{own}.o", **wide, "down": f"{dense}.wo"},
        reads=dense,
        gives=dense,
        attention=own,
        rotary=False,
        head_dim="key_value_proj_dim",
    )


def _t5_stacks(gated: bool) -> dict[str, Stack]:
    return {"encoder": _t5("encoder", "layer.1", gated), "decoder": _t5("decoder", "layer.2", gated)}


# model_type of a language model -> its stacks
HOSTS: dict[str, Mapping[str, Stack]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "gemma", "smollm3"), {"language": LLAMA}
    ),
    **dict.fromkeys(("qwen3", "qwen3_vl_text"), {"language": QWEN3}),
    "phi3": {"language": PHI3},
    "gpt2": {"language": GPT2},
    "opt": {"language": OPT},
    "t5": _t5_stacks(gated=False),
}

# What else was looked at, and why it has no table
REFUSED: dict[str, str] = {
    **dict.fromkeys(("gemma2", "gemma3_text"), "it has a norm behind attention and one behind the MLP"),
    **dict.fromkeys(("cohere", "cohere2"), "its attention and its MLP read one norm"),
    "mllama_text_model": "some of its blocks have cross-attention alone",
}

_CLIP_TOWER = Stack(
    blocks="layers",
    final="",
    norms={"attention": "layer_norm1", "ffn": "layer_norm2"},
    linears={
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj",
        "up": "mlp.fc1", "down": "mlp.fc2",
    },
    reads="mlp",
    gives="mlp",
    prefix=False,
)  # fmt: skip

# library and class of the module that holds a vision tower's blocks -> what it is called, and the stack
TOWERS: dict[str, tuple[str, Stack]] = {
    "transformers.CLIPEncoder": ("a CLIP tower of transformers", _CLIP_TOWER),
    "transformers.SiglipEncoder": ("a SigLIP tower of transformers", _CLIP_TOWER),
    "transformers.Siglip2Encoder": ("a SigLIP 2 tower of transformers", _CLIP_TOWER),
    "open_clip.Transformer": (
        "a ViT of open_clip",
        Stack(
            blocks="resblocks",
            final="",
            norms={"attention": "ln_1", "ffn": "ln_2"},
            linears={"up": "mlp.c_fc", "down": "mlp.c_proj"},  # attention's are no modules that are called
            reads="mlp",
            gives="ls_2",
            prefix=False,
        ),
    ),
    "timm.VisionTransformer": (
        "a ViT of timm",
        Stack(
            blocks="blocks",
            final="",
            norms={"attention": "norm1", "ffn": "norm2"},
            linears={"up": "mlp.fc1", "down": "mlp.fc2"},
            reads="mlp",
            gives="ls2",
            prefix=False,
        ),
    ),
}


def stacks_of(config: Mapping[str, Any]) -> Mapping[str, Stack]:
    """The stacks of a language model, by name, from its (text) config; {} where `why_no_slots` says why."""
    kind = str(config.get("model_type"))
    if kind == "t5" and str(config.get("feed_forward_proj", "relu")).startswith("gated-"):
        return _t5_stacks(gated=True)
    if kind == "opt" and not config.get("do_layer_norm_before", True):
        return {}
    return HOSTS.get(kind, {})


def slots_in(stack: Stack) -> frozenset[str]:
    """The slots that a stack has, by name: `norm_output attention`, `linear gate`, `attention_prefix`, `norm final`."""
    named = {f"{slot} {which}" for slot in ("norm_output", "norm") for which in stack.norms}
    named |= {f"linear {which}" for which in stack.linears} | {"ffn", "ffn_residual"}
    return frozenset([*named, *["norm final"] * bool(stack.final), *["attention_prefix"] * stack.prefix])


def why_no_slots(config: Mapping[str, Any], slots: Iterable[str] = ()) -> str:
    """ "" where a language model has all of `slots` (names as `slots_in` gives them) in each stack, else one sentence.

    config: the host's (text) config, as config.json holds it.
    """
    kind, stacks = str(config.get("model_type")), stacks_of(config)
    if not stacks and kind == "opt":
        return "opt with do_layer_norm_before: false has no table of slots: its MLP reads no norm"
    if not stacks:
        reason = f": {REFUSED[kind]}" if kind in REFUSED else ""
        return f"{kind} has no table of slots, so no graft attaches to it{reason}"
    lacking = (slot for stack in stacks.values() for slot in slots if slot not in slots_in(stack))
    return next((f"{kind} has no slot {slot}" for slot in lacking), "")
