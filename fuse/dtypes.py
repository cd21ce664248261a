"""Which dtype each part of the output has: as the recipe says it, in safetensors' names and in transformers'."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fuse.recipe import PartDtypes

if TYPE_CHECKING:
    from fuse.plan import Row

STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
PARTS = {"language": ("language",), "vision": ("encoder", "projector", "extra"), "projector": ("projector", "extra"),
         "grafts": ("graft",)}  # of the recipe's table -> those of `Row.part`  # fmt: skip
WORDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def part_dtypes(given: str | PartDtypes | None) -> dict[str, str]:
    """The word for each part that the recipe gives one, by `Row.part`: one for all, or a table.

    `vision` is the encoder, the projector and what else its class has; `projector` goes before it for the last two.
    """
    if given is None or isinstance(given, str):
        parts = dict.fromkeys(("language", "encoder", "projector", "extra", "graft"), given)
    else:
        projector = given.projector or given.vision
        parts = {"language": given.language, "encoder": given.vision, "projector": projector, "extra": projector,
                 "graft": given.grafts}  # fmt: skip
    return {part: word for part, word in parts.items() if word}


def stored(dtypes: Mapping[str, str], part: str) -> str:
    """The dtype of a part's float tensors in safetensors' name, "" where each keeps its own."""
    return STORED.get(dtypes.get(part, ""), "")


def told(rows: "Sequence[Row]") -> str:
    """The dtypes of tensors, for people: those of floats, the most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.dtype in WORDS:
            counts[WORDS[row.dtype]] = counts.get(WORDS[row.dtype], 0) + 1
    return " and ".join(sorted(counts, key=lambda word: -counts[word]))
