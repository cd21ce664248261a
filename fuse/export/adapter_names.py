"""What an adapter calls the tensors of its base's language model, and which of them are matrices that it can change."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fuse.anatomy import Member
from fuse.families.family import Family

PREFIX = "base_model.model."
TABLES = frozenset({"embed_tokens", "wte", "wpe", "embed_positions", "shared", "relative_attention_bias"})
TRANSPOSED = frozenset({"gpt2"})  # families whose matrices lie [in, out]
PLACES = {"t5": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")}  # of the embedding
TASKS = {"t5": "SEQ_2_SEQ_LM"}


def in_memory(family: Family, canonical: str) -> str:
    """A language tensor's name in the base's class as transformers builds it.

    canonical: as `fuse.families` has it. `model.layers.0.x` is `model.language_model.layers.0.x` in a LLaVA.
    """
    inside = [prefix for prefix, (part, inner) in family.prefixes.items() if part == "language" and inner == "model."]
    longest = max((prefix for prefix in inside if prefix.startswith("model.")), key=len, default="model.")
    return longest + canonical.removeprefix("model.") if canonical.startswith("model.") else canonical


def is_matrix(canonical: str, shape: Sequence[int], head: str, *, tied: bool) -> bool:
    """Whether LoRA can change it: a projection's weight, or the head where it is no embedding."""
    module, _, what = canonical.rpartition(".")
    if what != "weight" or len(shape) != 2 or (tied and canonical == head):
        return False
    return module.rpartition(".")[2] not in TABLES


def module_of(name: str) -> str:
    """The module that holds a tensor."""
    return name.rpartition(".")[0]


def also(base: Member, canonical: str) -> tuple[str, ...]:
    """The other names of a tensor in the base's class. A module that is stored whole is no longer tied to another, so
    an embedding is stored once for each of its places.
    """
    if canonical != base.text.embedding:
        return ()
    return (*PLACES.get(base.text.name, ()), *([base.text.head] if base.is_tied else []))


def stored_name(name: str, changed: Collection[str]) -> str:
    """The name of a tensor that is stored whole: inside a module that LoRA changes it is that of the layer in it.

    changed: the modules that LoRA changes.
    """
    module, _, what = name.rpartition(".")
    return f"{module}.base_layer.{what}" if module in changed else name


def targets(chosen: Collection[str], there: Collection[str], *, sees: bool) -> list[str]:
    """`target_modules`: last names where they mean the chosen modules and no other, else whole names.

    chosen: the modules that are changed. there: all of the base's. sees: the base has an encoder, whose modules may
    have the same last names.
    """
    last = {module.rpartition(".")[2] for module in chosen}
    same = {module for module in there if module.rpartition(".")[2] in last}
    return sorted(last) if not sees and same == set(chosen) else sorted(chosen)


def peft_config(
    base: Member, named: str, rank: int, ranks: Mapping[str, int], chosen: Sequence[str], whole: Collection[str]
) -> dict[str, Any]:  # fmt: skip
    """adapter_config.json as PEFT reads it.

    named: what it calls the base. rank: that most modules have. ranks: of the changed modules. chosen: as `targets`
    gives them. whole: modules that are stored whole. Alpha is the rank everywhere, so that nothing is scaled.
    """
    other = {module: own for module, own in sorted(ranks.items()) if own != rank}
    return {
        "peft_type": "LORA", "task_type": None if base.sees else TASKS.get(base.text.name, "CAUSAL_LM"),
        "base_model_name_or_path": named, "revision": base.checkpoint.revision or None, "inference_mode": True,
        "r": rank, "lora_alpha": rank, "rank_pattern": other, "alpha_pattern": dict(other), "lora_dropout": 0.0,
        "target_modules": list(chosen), "modules_to_save": sorted(whole) or None,
        "fan_in_fan_out": base.text.name in TRANSPOSED, "init_lora_weights": True, "use_rslora": False,
        "use_dora": False,
    }  # fmt: skip
