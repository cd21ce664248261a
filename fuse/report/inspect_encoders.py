"""The page of `fuse inspect encoders`: CKA of layers, tokens in a plane, the measures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fuse.align.encoders.table import COLUMNS, PLACES, caption
from fuse.report.colours import Scale
from fuse.report.page import Heat, Page, Scatter, Section, Sentence, Table, three_digits
from fuse.report.points import common_plane, some, turned_plane
from fuse.sizes import counted

Document = Mapping[str, Any]
CKA = Scale(0.0, 1.0)
FORMS = {"unbiased": "Linear CKA, unbiased", "biased": "Linear CKA, biased (larger the fewer samples there are)"}
NONE = "-"


def page(document: Document, samples: Mapping[str, Mapping[str, Any]] | None = None) -> Page:
    """document: of `fuse inspect encoders`. samples: rows that were drawn, by member and place, as `Compared` has them.

    Without samples there are no scatters.
    """
    pairs = document["pairs"]
    first = [pair["sentences"][0] for pair in pairs if pair["sentences"]]
    members = list(document["members"])
    return Page(
        title="Do these encoders see alike?",
        about=f"{', '.join(members)} over {counted(document['images'], 'image')}.",
        verdicts=[Sentence(text) for text in (*first, *document["sentences"])],
        sections=[
            Section("All pairs", [*_overview(document, members), _pair_table(pairs)]),
            *(_pair_section(pair, samples) for pair in pairs),
            Section("The members", [_member_table(document)]),
            Section("Biased CKA", list(_layer_maps(pairs, "biased")), folded=True),
            *([_skipped(document["skipped"])] if document["skipped"] else []),
        ],
    )


def _overview(document: Document, members: Sequence[str]) -> Iterator[Heat]:
    """CKA of all with all, where there are more than two."""
    for place, title in PLACES.items() if len(members) > 2 else ():
        found = {(pair["a"], pair["b"]): _value(pair, place, "cka") for pair in document["pairs"]}
        if all(value is None for value in found.values()):
            continue
        values = [
            [1.0 if a == b else found.get((a, b), found.get((b, a))) for b in members] for a in members
        ]  # fmt: skip
        yield Heat(f"cka-{place}", f"CKA of all pairs: {title}", members, members, values, CKA, "member", "member")


def _pair_section(pair: Document, samples: Mapping[str, Mapping[str, Any]] | None) -> Section:
    sentences = [Sentence(text) for text in pair["sentences"]]
    return Section(f"{pair['a']} and {pair['b']}", list(_charts(pair, samples)), sentences)


def _charts(pair: Document, samples: Mapping[str, Mapping[str, Any]] | None) -> Iterator[Heat | Scatter]:
    yield from _layer_maps([pair], "unbiased")
    for place, title in {"encoder": "last layers", "projector": "behind the projectors"}.items():
        if samples and pair[place]:
            yield from _plane(pair, place, title, samples)


def _layer_maps(pairs: Sequence[Document], form: str) -> Iterator[Heat]:
    for pair in pairs:
        a, b = pair["a"], pair["b"]
        places = {"encoder": pair["layers"], "llm": (pair["llm"] or {}).get("layers", {})}
        for place, layers in places.items():
            if form not in layers:
                continue
            where = "layers" if place == "encoder" else "blocks of the language models"
            yield Heat(
                f"{form}-{place}", f"{a} and {b}, {where}", list(map(str, layers["a"])), list(map(str, layers["b"])),
                layers[form], CKA, f"{where} of {a}", f"{where} of {b}",
                f"{FORMS[form]}, over {counted(layers['samples'], 'sample')}.",
            )  # fmt: skip


def _plane(
    pair: Document, place: str, title: str, samples: Mapping[str, Mapping[str, Any]]
) -> Iterator[Scatter]:  # fmt: skip
    """The tokens of both: together where they share a space, else each on its own directions."""
    a, b = pair["a"], pair["b"]
    rows = [some(samples[name][place].rows.double().cpu().numpy()) for name in (a, b)]
    if not all(np.isfinite(side).all() for side in rows):
        return
    if "mmd" not in pair[place]["unmeasured"] and rows[0].shape[1] == rows[1].shape[1]:
        plane = common_plane(*rows)
        how = f"The two main directions of all of them together, which hold {plane.shares[0]:.0%} of their variance."
    else:
        plane = turned_plane(*rows)
        first, second = plane.shares
        how = (
            f"They share no space, so each lies on its own two main directions ({first:.0%} of the variance of {a}, "
            f"{second:.0%} of {b}), at one size, {b} turned to lie on {a}. Spreads compare, places do not."
        )
    groups = {name: [(x, y) for x, y in points.tolist()] for name, points in ((a, plane.a), (b, plane.b))}
    yield Scatter(f"tokens-{place}", f"Tokens of {a} and {b}, {title}", groups, how)


def _pair_table(pairs: Sequence[Document]) -> Table:
    rows = [
        [f"{pair['a']}, {pair['b']}", title, *(_told(_value(pair, place, name)) for name in COLUMNS)]
        for pair in pairs
        for place, title in PLACES.items()
        if (pair[place] or {}).get("values")
    ]
    told = caption().partition("Higher is closer")
    return Table(["pair", "place", *COLUMNS.values()], rows, told[1] + told[2])


def _member_table(document: Document) -> Table:
    rows = []
    for name, member in document["members"].items():
        for place, found in (("last layer", member), ("projector", member["projector"])):
            if found is not None:
                grid = "x".join(map(str, found["grid"])) if found["grid"] else NONE
                rank, ratio = found["effective_rank"], found.get("norm_ratio")
                rows.append([
                    name, member["architecture"], str(member["blocks"]), place, str(found["width"]), grid,
                    NONE if rank is None else f"{rank:.1f}", f"{found['norm']:.3g}",
                    NONE if ratio is None else f"{ratio:.2f}",
                ])  # fmt: skip
    head = ["member", "encoder", "blocks", "place", "width", "grid", "rank", "length", "to words"]
    told = "rank: effective rank of the tokens. length: their mean norm; to words: over that of the LLM's words."
    return Table(head, rows, told)


def _skipped(skipped: Sequence[Document]) -> Section:
    rows = [[one["file"], one["why"]] for one in skipped]
    return Section("Images that cannot be read", [Table(["file", "why"], rows, words=True)], folded=True)


def _value(pair: Document, place: str, measure: str) -> float | None:
    return (pair[place] or {}).get("values", {}).get(measure)


def _told(value: float | None) -> str:
    return NONE if value is None else three_digits(value)
