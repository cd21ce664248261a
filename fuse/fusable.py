"""Which members can be branches or hosts of a fused folder, and why the others cannot. The one table for that."""

from fuse.anatomy import Member

# model_type of members whose encoder and projector give visual tokens for the sequence, through transformers' class
NATIVE = frozenset({
    "llava", "llava_next", "llava_onevision", "vipllava", "internvl", "idefics2", "idefics3", "smolvlm", "paligemma",
    "qwen2_vl", "qwen2_5_vl", "mistral3", "gemma3", "aya_vision",
})  # fmt: skip

REFUSED = {
    "mllama": "it reads images through cross-attention, so there are no visual tokens to concatenate",
    "qwen3_vl": "its DeepStack adds image features inside the language model, not only in the sequence",
    "blip-2": "its visual tokens come out of a Q-Former, which this version does not carry",
    "instructblip": "its Q-Former reads the question with weights of its own, which this version does not carry",
    "internvl_chat": "it has the layout of its authors' code; convert it to transformers' internvl first",
}


def kind_of(member: Member) -> str:
    """The kind of branch that a member's eyes are: native, llava_original, mgm or slime."""
    if member.family.native:
        return "native"
    if "model.sampler." in member.family.prefixes:
        return "slime"
    return "mgm" if "model.vlm_uni_query_projector." in member.family.prefixes else "llava_original"


def host_type(member: Member) -> str:
    """What a fused config calls its host: the model_type that decides positions and attention."""
    if member.family.native:
        return member.family.model_type
    return kind_of(member)


def why_no_branch(member: Member) -> str:
    """Why the member's eyes cannot be a branch of a fused folder, or ""."""
    family = member.family
    if family.model_type in REFUSED:
        return f"{member.name} ({family.model_type}) cannot be fused: {REFUSED[family.model_type]}"
    if family.native and family.model_type not in NATIVE:
        return f"{member.name} ({family.model_type}) cannot be fused: no branch is known for it"
    return ""


def why_no_host(member: Member) -> str:
    """Why the member's language model cannot carry a fused folder, or ""."""
    if member.family.model_type in REFUSED:
        return why_no_branch(member)
    if member.text.name == "mllama":
        return f"{member.name} has cross-attention layers, which a fused folder does not feed"
    return ""
