"""LMEye's checkpoints of both generations: the network into a graft, the static mapping into a projector.

The authors save what they trained: `imgLinear`, `imgdLinear`, `embedding_img`, `embedding_imgd`, `promptMlp` and
`llm2clip` (first generation), `imageLinear` and `new_embedding` (its first stage, the static mapping alone), or
`language_projection` and `instruction_*` (second generation). The frozen parts are not in the file: the text tower
comes from the CLIP folder of `--set clip=FOLDER`, the Q-Former of the second generation from the BLIP-2 folder of
`--set blip2=FOLDER`. A file of the whole model has them itself.

Placeholder tokens have embeddings of their own, to which everything is added. The authors did not save the first
generation's (new rows at the end of the table, drawn at random and frozen): they are folded into the offsets where a
file of the whole model has them, and taken as zero otherwise. `embedding_img=imgd` is what the published inference
scripts do: their loader puts `embedding_imgd` also where `embedding_img` belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fuse.errors import CheckpointError
from fuse.importers import About, Imported, Piece
from fuse.importers.lmeye_blip2 import sort_second
from fuse.importers.lmeye_clip import text_tower
from fuse.importers.lmeye_parts import check, need, rest

if TYPE_CHECKING:
    from torch import Tensor

HELP = "LMEye's interactive perception network, both generations (checkpoint_with_epoch*.pth)"
OPTIONS: Mapping[str, tuple[Any, ...]] = {"clip": (), "blip2": (), "embedding_img": ("own", "imgd")}

LINEARS = tuple(f"{name}.{part}" for name in ("llm2clip", "promptMlp", "imgdLinear") for part in ("weight", "bias"))
STAGE_1 = {
    "imgLinear.weight": "imageLinear.weight",
    "imgLinear.bias": "imageLinear.bias",
    "embedding_img": "new_embedding",
}
ELSEWHERE = {
    "llm.": "the language model, which comes from its own folder",
    "clip.text": "another text tower was named",
    "clip.vision_model.": "CLIP's image side, which a branch has",
    "clip.visual_projection.": "CLIP's image side, which a branch has",
    "clip.logit_scale": "for comparing texts with images",
    "embedding_img": "`embedding_imgd` was asked for in its place",
}
TABLES = ("llm.model.embed_tokens.weight", "llm.transformer.word_embeddings.weight",
          "llm.model.decoder.embed_tokens.weight")  # fmt: skip


def sort_keys(state: Mapping[str, Tensor], about: About) -> Imported:
    """Graft and projector of one file; a file of the first stage has the projector alone.

    Raises CheckpointError for keys that are missing or unknown, for shapes that do not go together, and where the text
    tower is nowhere.
    """
    if any(key.startswith("instruction_") for key in state):
        return sort_second(state, about)
    projector = _projector(state, about)
    alone = not any(key in state for key in (*LINEARS, "embedding_imgd"))
    pieces = [projector] if alone else [projector, _graft(state, projector.config, about)]
    return Imported(None if alone else pieces[1], projector, dropped=rest(state, pieces, ELSEWHERE))


def _projector(state: Mapping[str, Tensor], about: About) -> Piece:
    """The static mapping, under the names of either stage."""
    first = "imageLinear.weight" in state
    weight, bias, offset = (STAGE_1[name] if first else name for name in STAGE_1)
    offset = "embedding_imgd" if about.options.get("embedding_img") == "imgd" else offset
    need(state, weight, bias, offset)
    check(weight, state[weight], (None, None))
    check(offset, state[offset], (1, None))
    (size, c), d = state[weight].shape, state[offset].shape[1]
    if size % d:
        raise CheckpointError(f"{weight} gives {size} numbers, no tokens of {d} each, which {offset} has")
    check(bias, state[bias], (size,))
    row, origin = _with_row(state, offset, -2)
    return Piece(
        "lmeye", {"width": c, "hidden_size": d, "tokens": size // d},
        {"imgLinear.weight": state[weight], "imgLinear.bias": state[bias], "embedding_img.weight": row},
        {"imgLinear.weight": (weight,), "imgLinear.bias": (bias,), "embedding_img.weight": origin},
    )  # fmt: skip


def _graft(state: Mapping[str, Tensor], mapping: Mapping[str, Any], about: About) -> Piece:
    """The network. mapping: the projector's config."""
    need(state, "embedding_imgd", *LINEARS)
    c, d = mapping["width"], mapping["hidden_size"]
    check("embedding_imgd", state["embedding_imgd"], (1, d))
    p, q = (max(1, len(state[name]) // n) for name, n in (("promptMlp.weight", c), ("imgdLinear.weight", d)))
    for name, fan_in, fan_out in (("llm2clip", d, c), ("promptMlp", c, p * c), ("imgdLinear", c, q * d)):
        check(f"{name}.weight", state[f"{name}.weight"], (fan_out, fan_in))
        check(f"{name}.bias", state[f"{name}.bias"], (fan_out,))
    row, origin = _with_row(state, "embedding_imgd", -1)
    tower = text_tower(state, about, c, p + 2)
    return Piece(
        "lmeye", {"hidden_size": d, "width": c, "prompts": p, "slots": q, "place": "question", "clip": tower.config},
        {"embedding_imgd.weight": row, **{name: state[name] for name in LINEARS}, **tower.tensors},
        {"embedding_imgd.weight": origin, **{name: (name,) for name in LINEARS}, **tower.origins},
    )  # fmt: skip


def _with_row(state: Mapping[str, Tensor], offset: str, row: int) -> tuple[Tensor, tuple[str, ...]]:
    """An offset [1, d] with the embedding of its token in it, where the file has the table; and what it was made of.

    row: the token's, counted from the end of the table: `<img>` and `<img-d>` are its last two.
    """
    table = next((name for name in TABLES if name in state), None)
    if table is None:
        return state[offset], (offset,)
    check(table, state[table], (None, state[offset].shape[1]))
    return state[offset] + state[table][row].to(state[offset]), (offset, table)
