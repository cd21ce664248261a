"""The names of an adapter's tensors: which module, and which role in its change; or a whole tensor of the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fuse.errors import CheckpointError
from fuse.safetensors_header import TensorEntry

PREFIX = "base_model.model."
_TOKENS = {"token_adapter.trainable_tokens_delta": "rows", "trainable_tokens_delta": "rows"}
# peft_type -> end of a name, without `.weight` and the adapter's own name -> role
ROLES: Mapping[str, Mapping[str, str]] = {
    "LORA": {
        "lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B", "lora_magnitude_vector": "m",
        "lora_B.bias": "v", **_TOKENS,
    },
    "IA3": {"ia3_l": "l"},
    "LOHA": {f"hada_{name}": name for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "LOKR": {f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    "LN_TUNING": {},
    "TRAINABLE_TOKENS": _TOKENS,
}  # fmt: skip
_WRAPPED = (".base_layer.", ".modules_to_save.", ".ln_tuning_layers.")


@dataclass(frozen=True)
class Module:
    """A module that an adapter changes: the adapter's tensors by role. embedding: its factors are an embedding's."""

    name: str
    parts: dict[str, TensorEntry] = field(default_factory=dict)
    embedding: bool = False


@dataclass(frozen=True)
class Sorted:
    """modules: by name. whole: name in the model -> the adapter's tensor that stands there."""

    modules: Mapping[str, Module]
    whole: Mapping[str, TensorEntry]


def sort_keys(kind: str, tensors: Mapping[str, TensorEntry]) -> Sorted:
    """The tensors, by PEFT's names, by module and role.

    Raises CheckpointError, without a place, where two are the same one.
    """
    modules: dict[str, Module] = {}
    whole: dict[str, TensorEntry] = {}
    for key, entry in tensors.items():
        plain = key.removeprefix(PREFIX).replace(".default.", ".").removesuffix(".default")
        found = _role(kind, plain)
        if found is None:
            for wrapper in _WRAPPED:
                plain = plain.replace(wrapper, ".")
            if plain in whole:
                raise CheckpointError(f"tensors {whole[plain].name!r} and {entry.name!r} are the same one")
            whole[plain] = entry
            continue
        name, role, end = found
        module = modules.setdefault(name, Module(name, {}, end.startswith("lora_embedding")))
        if role in module.parts:
            raise CheckpointError(f"tensors {module.parts[role].name!r} and {entry.name!r} are the same one")
        module.parts[role] = entry
    return Sorted(modules, whole)


def _role(kind: str, name: str) -> tuple[str, str, str] | None:
    """(module, role, end of the name) of a name that has a role."""
    bare = name.removesuffix(".weight")
    for end in sorted(ROLES[kind], key=len, reverse=True):
        if bare.endswith(f".{end}"):
            return bare.removesuffix(f".{end}"), ROLES[kind][end], end
    return None
