"""The result of a comparison of encoders as one JSON document, before sentences are made of its numbers."""

from contextlib import suppress
from itertools import combinations
from typing import Any

from fuse.align import Unmeasurable
from fuse.align.encoders.pair import Drawn, matrices, measured, space_between
from fuse.align.encoders.run import Run, Side
from fuse.align.features.images import Skipped
from fuse.align.features.look import END
from fuse.align.measures.cka.mixed import mixed_cka
from fuse.align.measures.spread import spread
from fuse.model.norms import embedding_norm

VERSION = 1
TOWERS = "needs a common space, which towers do not have"


def document(run: Run, skipped: Skipped, limit: int) -> tuple[dict[str, Any], dict[str, dict[str, Drawn]]]:
    """The document, and by member and place the samples that its measures were taken of.

    {"inspect": "encoders", "version", "images", "skipped": [{"file", "why"}], "limit",
     "common_grid": {place: {"grid": [h, w] or null, "sentence"}}, "members": {name: ...}, "pairs": [...]}.
    """
    drawn = {side.name: {place: Drawn(*kept.drawn()) for place, kept in side.kept.items()} for side in run.sides}
    found = {
        "inspect": "encoders", "version": VERSION, "images": run.images,
        "skipped": [{"file": file, "why": why} for file, why in skipped.why.items()], "limit": limit,
        "common_grid": {
            place: {"grid": list(common.grid) if common.grid else None, "sentence": common.sentence}
            for place, common in run.common.items()
        },
        "members": {side.name: _member(side, drawn[side.name]) for side in run.sides},
        "pairs": [_pair(run, i, j, drawn) for i, j in combinations(range(len(run.sides)), 2)],
    }  # fmt: skip
    return found, drawn


def _member(side: Side, drawn: dict[str, Drawn]) -> dict[str, Any]:
    encoder = side.encoder
    places = {place: _place(side, place, drawn[place]) for place in side.widths}
    found: dict[str, Any] = {
        "folder": str(encoder.folder), "given": encoder.name, "architecture": encoder.architecture,
        "blocks": len(encoder.blocks), "layers": side.layers or [END], **places["encoder"],
        "projector": places.get("projector"), "llm": None,
    }  # fmt: skip
    if encoder.words is not None and found["projector"]:
        norm = float(embedding_norm(encoder.embed, len(encoder.words), encoder.words.device))
        own = found["projector"]["norm"]
        found["projector"] |= {"word_norm": norm, "norm_ratio": own / norm if norm else None}
    return found


def _place(side: Side, place: str, drawn: Drawn) -> dict[str, Any]:
    """What one encoder gives at one place: sizes, the mean length of a token, and how its tokens spread."""
    grid = side.grids[place]
    found: dict[str, Any] = {
        "width": side.widths[place], "grid": list(grid) if grid else None,
        "norm": float(drawn.rows.norm(dim=1).mean()), "samples": len(drawn.rows),
    }  # fmt: skip
    try:
        told = spread(drawn.rows, "its features")
    except Unmeasurable as why:
        return {**found, "effective_rank": None, "participation": None, "unmeasured": str(why)}
    return {**found, "effective_rank": told.effective_rank, "participation": told.participation}


def _pair(run: Run, i: int, j: int, drawn: dict[str, dict[str, Drawn]]) -> dict[str, Any]:
    a, b = run.sides[i], run.sides[j]
    names = (a.name, b.name)
    layers = matrices(run.sums[i, j, "encoder"], names, (a.layers or [END], b.layers or [END]))
    last = {
        kind: [[layers[kind][-1][-1]]] if kind in layers else None for kind in ("biased", "unbiased")
    } | {key: layers[key] for key in ("unmeasured",) if key in layers}  # fmt: skip
    both = {place: (drawn[a.name][place], drawn[b.name][place]) for place in a.widths if place in b.widths}
    pair: dict[str, Any] = {
        "a": a.name, "b": b.name, "layers": layers,
        "encoder": _with_cka(measured(*both["encoder"], names, TOWERS), last, *both["encoder"]),
        "projector": None, "llm": None,
    }  # fmt: skip
    if (i, j, "projector") in run.sums:
        widths = (a.widths["projector"], b.widths["projector"])
        cosine, no_space = space_between((a.encoder.words, b.encoder.words), widths, names)
        found = measured(*both["projector"], names, no_space)
        cka = matrices(run.sums[i, j, "projector"], names, ([END], [END]))
        pair["projector"] = {**_with_cka(found, cka, *both["projector"]), "embeddings_cosine": cosine}
    return pair


def _with_cka(found: dict[str, Any], cka: dict[str, Any], a: Drawn, b: Drawn) -> dict[str, Any]:
    """The measures of a place with the streamed CKA of all its samples, and what drawn ones have between images."""
    if "unmeasured" in cka:
        return {**found, "unmeasured": {"cka": cka["unmeasured"], **found["unmeasured"]}}
    streamed = {"cka": cka["unbiased"][0][0], "cka_biased": cka["biased"][0][0]}
    details = found["details"]
    if a.cells is not None:
        with suppress(Unmeasurable):  # one image has no other
            details = {"cka": {"other_images": mixed_cka(a.rows, b.rows, a.cells.to(a.rows.device))}, **details}
    return {**found, "values": {**streamed, **found["values"]}, "details": details}
