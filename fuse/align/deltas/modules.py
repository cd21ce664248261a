"""Where a tensor stands in a model: stack, layer and type of module, from its canonical name."""

import re
from dataclasses import dataclass

from fuse.parameters import LAYER

# type of module -> what its names have, the first that is found wins
MODULES = {
    "norm": r"norm|(^|\.)ln_",
    "head": r"\blm_head\b",
    "position": r"\bwpe\b|embed_positions|position_embedding|relative_attention_bias|pos_embed",
    "embedding": r"embed|\bwte\b|\bshared\b",
    "qkv": r"qkv|c_attn|query_key_value|in_proj",
    "q": r"\bq(_proj)?\b|\bquery\b",
    "k": r"\bk(_proj)?\b|\bkey\b",
    "v": r"\bv(_proj)?\b|\bvalue\b",
    "o": r"\bo(_proj)?\b|out_proj|attn\.(c_)?proj\b",
    "gate_up": r"gate_up_proj",
    "gate": r"gate_proj|\bwi_0\b",
    "up": r"up_proj|\bwi(_1)?\b|c_fc|\bfc1\b",
    "down": r"down_proj|\bwo\b|mlp\.c_proj|\bfc2\b",
}
OTHER = "other"
# the order in which people read a model; what is not here comes last
ORDER = ("embedding", "position", "q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "norm", "head")


@dataclass(frozen=True)
class Place:
    """stack: what stands before the number of a layer, such as `model.layers`; "" and None outside the layers."""

    part: str
    stack: str
    layer: int | None
    module: str

    @property
    def told(self) -> str:
        """`model.layers.3`, or the type of module outside the layers."""
        return self.module if self.layer is None else f"{self.stack}.{self.layer}"


def place_of(part: str, canonical: str) -> Place:
    """The place of a tensor. A projector is one module, whatever its layers are called."""
    if part == "projector":
        return Place(part, "", None, "projector")
    found = LAYER.match(canonical)
    inside = canonical[found.end() :] if found else canonical
    module = next((module for module, names in MODULES.items() if re.search(names, inside)), OTHER)
    return Place(part, found[1].rstrip("."), int(found[2]), module) if found else Place(part, "", None, module)


def rank_of(module: str) -> int:
    """Where a type of module comes in a table."""
    return ORDER.index(module) if module in ORDER else len(ORDER)
