"""LMEye's second generation: `instruction_*` into a graft, the Q-Former with `language_projection` into a projector.

What is frozen comes from a BLIP-2 folder (`--set blip2=FOLDER`): the Q-Former, its queries, the norm that ends the
vision tower, and the row of the language model's embedding that the authors put at every placeholder, id 0, which is
folded into the offsets and the projection's bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fuse.branches.lmeye_blip2_projector_files import shapes as projector_shapes
from fuse.errors import CheckpointError
from fuse.importers import About, Imported, Piece
from fuse.importers.lmeye_clip import text_tower
from fuse.importers.lmeye_parts import check, in_folder, need, rest

if TYPE_CHECKING:
    from torch import Tensor

OFFSETS = ("instruction_embedding_imgd", "instruction_embedding_imgq")
LINEARS = tuple(
    f"instruction_{n}.{part}" for n in ("blip22clip", "linear", "imgdLinear") for part in ("weight", "bias")
)
PROJECTION = ("language_projection.weight", "language_projection.bias")
QUERIES, NORM = "query_tokens", "vision_model.post_layernorm."
TABLES = ("language_model.shared.weight", "language_model.model.decoder.embed_tokens.weight")
FROZEN = (QUERIES, "qformer.", NORM, *TABLES)
ELSEWHERE = {
    "language_model.": "the language model, which comes from its own folder",
    "vision_model.": "the vision tower, which a branch has",
    "qformer.": "another BLIP-2 was named",
    "query_tokens": "another BLIP-2 was named",
    "clip.text": "another text tower was named",
    "clip.vision_model.": "CLIP's image side, which is not used",
    "clip.visual_projection.": "CLIP's image side, which is not used",
    "clip.logit_scale": "for comparing texts with images",
}
DEFAULTS = {  # of BLIP-2's config classes, which config.json leaves out
    "num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "cross_attention_frequency": 2,
}  # fmt: skip
VISION_EPS = 1e-6


@dataclass(frozen=True)
class _Frozen:
    """Frozen tensors by their BLIP-2 names, those that are keys of the file, and BLIP-2's config.json."""

    tensors: Mapping[str, Tensor]
    mine: frozenset[str]
    config: Mapping[str, Any]

    def origin(self, name: str) -> tuple[str, ...]:
        return (name,) if name in self.mine else ()


def sort_second(state: Mapping[str, Tensor], about: About) -> Imported:
    """Graft and projector of a file of the second generation. Raises CheckpointError as `sort_keys` does."""
    need(state, *OFFSETS, *LINEARS, *PROJECTION)
    check(PROJECTION[0], state[PROJECTION[0]], (None, None))
    d = state[PROJECTION[0]].shape[0]
    check(PROJECTION[1], state[PROJECTION[1]], (d,))
    frozen = _frozen(state, about)
    table = next((name for name in TABLES if name in frozen.tensors), None)
    if table is not None:
        check(table, frozen.tensors[table], (None, d))
    pieces = [_graft(state, about, frozen, table), _projector(state, frozen, table)]
    return Imported(pieces[0], pieces[1], dropped=rest(state, pieces, ELSEWHERE))


def _frozen(state: Mapping[str, Tensor], about: About) -> _Frozen:
    if named := about.options.get("blip2"):
        tensors, config, _ = in_folder("blip2", str(named), FROZEN)
        return _Frozen(tensors, frozenset(), config)
    mine = {key: tensor for key, tensor in state.items() if key.startswith(FROZEN)}
    if not any(key.startswith("qformer.") for key in mine):
        hint = "`--set blip2=FOLDER`: the BLIP-2 that the network was trained with, Salesforce/blip2-flan-t5-xl"
        raise CheckpointError("holds no Q-Former, and this generation of LMEye looks through one", hint=hint)
    return _Frozen(mine, frozenset(mine), {})


def _with_row(
    state: Mapping[str, Tensor], name: str, frozen: _Frozen, table: str | None
) -> tuple[Any, tuple[str, ...]]:
    """A tensor whose last dimension is d with the row of id 0 in it, and what it was made of."""
    if table is None:
        return state[name], (name,)
    return state[name] + frozen.tensors[table][0].to(state[name]), (name, *frozen.origin(table))


def _graft(state: Mapping[str, Tensor], about: About, frozen: _Frozen, table: str | None) -> Piece:
    d, w = state[PROJECTION[0]].shape
    for name in OFFSETS:
        check(name, state[name], (1, d))
    c = len(state["instruction_linear.bias"])
    r = max(1, len(state["instruction_blip22clip.bias"]) // c)
    for name, fan_in, fan_out in (("blip22clip", d, r * c), ("linear", w, c), ("imgdLinear", c, d)):
        check(f"instruction_{name}.weight", state[f"instruction_{name}.weight"], (fan_out, fan_in))
        check(f"instruction_{name}.bias", state[f"instruction_{name}.bias"], (fan_out,))
    need(frozen.tensors, QUERIES)
    tower = text_tower(state, about, c, frozen.tensors[QUERIES].shape[-2] + r + 1)
    offsets = {f"{name}.weight": _with_row(state, name, frozen, table) for name in OFFSETS}
    return Piece(
        "lmeye_blip2",
        {"hidden_size": d, "width": c, "features": w, "requests": r, "place": "question", "clip": tower.config},
        {**{k: t for k, (t, _) in offsets.items()}, **{name: state[name] for name in LINEARS}, **tower.tensors},
        {**{k: keys for k, (_, keys) in offsets.items()}, **{name: (name,) for name in LINEARS}, **tower.origins},
    )


def _projector(state: Mapping[str, Tensor], frozen: _Frozen, table: str | None) -> Piece:
    """The Q-Former as it is, its queries as a table, and the projection."""
    names = {key: key for key in frozen.tensors if key.startswith("qformer.")}
    names |= {f"post_layernorm.{part}": f"{NORM}{part}" for part in ("weight", "bias")}
    need(frozen.tensors, *names.values())
    tensors = {new: frozen.tensors[old] for new, old in names.items()}
    origins = {new: frozen.origin(old) for new, old in names.items()}
    check(QUERIES, frozen.tensors[QUERIES], (1, None, None))
    tensors["query_tokens.weight"] = frozen.tensors[QUERIES][0]
    origins["query_tokens.weight"] = frozen.origin(QUERIES)
    tensors[PROJECTION[0]], origins[PROJECTION[0]] = state[PROJECTION[0]], (PROJECTION[0],)
    tensors[PROJECTION[1]], origins[PROJECTION[1]] = _with_row(state, PROJECTION[1], frozen, table)
    config = _projector_config(tensors, frozen.config)
    for name, shape in projector_shapes(config).items():
        need(tensors, name)
        check(name, tensors[name], shape)
    if extra := sorted(tensors.keys() - projector_shapes(config).keys()):
        raise CheckpointError(f"has a key {extra[0]!r}, which no Q-Former of BLIP-2 has")
    return Piece("lmeye_blip2", config, tensors, origins)


def _projector_config(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> dict[str, Any]:
    former = {**DEFAULTS, **(told.get("qformer_config") or {})}
    first = "qformer.encoder.layer.0.intermediate_query.dense.weight"
    need(tensors, first)
    (queries, width), d = tensors["query_tokens.weight"].shape, tensors[PROJECTION[0]].shape[0]
    return {
        "hidden_size": d, "vision": len(tensors["post_layernorm.weight"]), "width": width, "queries": queries,
        "layers": sum(1 for name in tensors if name.endswith(".intermediate_query.dense.weight")),
        "heads": former["num_attention_heads"], "intermediate": len(tensors[first]),
        "every": former["cross_attention_frequency"], "activation": former["hidden_act"],
        "eps": float(former["layer_norm_eps"]),
        "vision_eps": float((told.get("vision_config") or {}).get("layer_norm_eps", VISION_EPS)),
    }  # fmt: skip
