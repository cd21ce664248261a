"""What the numbers of a comparison of encoders say, in sentences. The thresholds are our choice, and stand in them.

Likeness of two encoders is the unbiased linear CKA of their last layers: from 0.9 nearly one, from 0.5 alike, from 0.2
alike in part, below it different. Tokens of two projectors are of different length from a ratio of 2, and lie apart
where the cosine of their means is below 0.5. Neighbours agree by chance up to twice what independent features give.
A CKA is one of places, and an SVCCA one of chance, where half of it is left without the images that they share.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from fuse.sizes import counted

NEARLY, ALIKE, PARTLY = 0.9, 0.5, 0.2
LENGTHS = 2.0
LISTED = 20  # skipped files; the document has all
EXACT = "exact"  # how `fuse.align.measures.cka.linear` says so
K = 10  # neighbours, as `fuse.align.measures.knn` has them
APART = 0.5
CHANCE = 2.0
MUCH = 0.5


def best_match(layers: Mapping[str, Any]) -> tuple[int, int, float] | None:
    """The two layers with the largest unbiased CKA, by place in the lists `a` and `b`, and that value."""
    if "unbiased" not in layers:
        return None
    rows = layers["unbiased"]
    i, j = max(((i, j) for i, row in enumerate(rows) for j in range(len(row))), key=lambda at: rows[at[0]][at[1]])
    return i, j, rows[i][j]


def pair_sentences(pair: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """The verdicts on one pair: of what is seen, of where tokens lie, of language models; and what is not measured."""
    return [
        *_seen(pair, document["images"]),
        *_projected(pair, document["members"]),
        *_spoken(pair),
        *_unmeasured(pair),
    ]  # fmt: skip


def _seen(pair: Mapping[str, Any], images: int) -> list[str]:
    a, b, values = pair["a"], pair["b"], pair["encoder"]["values"]
    if (cka := values.get("cka")) is None:
        return []
    found = [f"{a} and {b} {_likeness(cka)}: CKA {cka:.2f} at their last layers, {_bound(cka)}."]
    found += _places(cka, pair["encoder"]["details"].get("cka"), images)
    if not (how := pair["layers"].get("how", EXACT)).startswith(EXACT):
        found.append(f"Their CKA is {how}: exact sums would not fit into memory.")
    if (knn := values.get("knn")) is not None:
        chance = pair["encoder"]["details"]["knn"]["chance"]
        how = "no more than chance" if knn <= CHANCE * chance else "more than chance"
        found.append(
            f"Of an image's {K} nearest images {K * knn:.1f} are the same to both, {how} "
            f"({K * chance:.1f}, to twice that)."
        )
    if (svcca := values.get("svcca")) is not None:
        chance = pair["encoder"]["details"]["svcca"]["chance"]
        if chance >= MUCH * svcca:
            found.append(f"Of their SVCCA of {svcca:.2f} chance gives up to {chance:.2f}: more images make that less.")
    return found


def _places(cka: float, details: Mapping[str, float] | None, images: int) -> Iterator[str]:
    """How much of a CKA over tokens is told by their places, whatever the image."""
    if images == 1:
        yield "With a single image that is between the places in it, and says nothing of what both see."
    elif details is not None:
        other = details["other_images"]
        told = f"the CKA between the same cells of different images is {other:.2f}"
        much = cka >= PARTLY and other >= MUCH * cka
        yield (
            f"Much of that is where tokens lie, not what they see: {told}." if much else f"{told[0].upper()}{told[1:]}."
        )


def _likeness(cka: float) -> str:
    if cka >= NEARLY:
        return "see nearly the same"
    if cka >= ALIKE:
        return "see images alike"
    return "see images alike in part" if cka >= PARTLY else "see images differently"


def _bound(cka: float) -> str:
    bounds = [bound for bound in (NEARLY, ALIKE, PARTLY) if cka >= bound]
    return f"at least {bounds[0]}" if bounds else f"below {PARTLY}"


def _projected(pair: Mapping[str, Any], members: Mapping[str, Any]) -> list[str]:
    place, a, b = pair["projector"], pair["a"], pair["b"]
    if place is None:
        without = [name for name in (a, b) if members[name]["projector"] is None]
        return [f"{' and '.join(without)} {'has' if len(without) == 1 else 'have'} no projector to compare behind."]
    found = []
    cosine, mmd = place["values"].get("cosine_of_means"), place["values"].get("mmd")
    if cosine is not None:
        side = f"below {APART}, so their tokens lie in different regions" if cosine < APART else f"at least {APART}"
        found.append(f"Behind the projectors the cosine of their means is {cosine:.2f}, {side}.")
    if mmd is not None:
        null = place["details"]["mmd"]["null"]
        how = "no more than" if abs(mmd) <= 3 * null else "more than"
        found.append(f"Their tokens are apart by MMD^2 {mmd:.3f}, {how} three times what chance gives ({null:.4f}).")
    first, second = members[a]["projector"]["norm"], members[b]["projector"]["norm"]
    longer, shorter = (a, b) if first >= second else (b, a)
    if not min(first, second):
        return [*found, f"Tokens of {shorter} are all zeros behind its projector."]
    ratio = max(first, second) / min(first, second)
    if ratio >= LENGTHS and "mmd" not in place["unmeasured"]:
        found.append(
            f"Tokens of {longer} are {ratio:.1f} times as long as those of {shorter}, at least {LENGTHS:g} times: "
            "`norm: match` on a branch evens them."
        )
    return found


def _spoken(pair: Mapping[str, Any]) -> list[str]:
    place = pair["llm"]
    if place is None or "cka" not in place.get("values", {}):
        return []
    cka = place["values"]["cka"]
    return [f"Behind the last blocks of their language models the CKA of images is {cka:.2f}."]


def _unmeasured(pair: Mapping[str, Any]) -> list[str]:
    """One sentence for each reason, with the measures that it keeps out; those that no tower can have are left out."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for place in ("encoder", "projector", "llm"):
        for measure, why in ((pair[place] or {}).get("unmeasured") or {}).items():
            if place != "encoder" or measure not in ("mmd", "cosine_of_means"):
                reasons.setdefault((place, why), []).append(measure)
    return [
        f"Not measured at the {place} of {pair['a']} and {pair['b']}: {', '.join(measures)} ({why})."
        for (place, why), measures in reasons.items()
    ]


def overall(document: Mapping[str, Any]) -> list[str]:
    """What was looked at, and which pairs are the most and the least alike."""
    paired = [place for place in document["common_grid"] if any(pair[place] for pair in document["pairs"])]
    grids = [f"At the {place}, {document['common_grid'][place]['sentence']}." for place in paired]
    known = [
        (pair["encoder"]["values"]["cka"], pair) for pair in document["pairs"] if "cka" in pair["encoder"]["values"]
    ]
    found = [f"{counted(document['images'], 'image')}.", *_skipped(document["skipped"]), *grids]
    if len(known) > 1:
        known.sort(key=lambda one: one[0])
        (least, far), (most, near) = known[0], known[-1]
        found.append(
            f"Most alike are {near['a']} and {near['b']} (CKA {most:.2f}), "
            f"least alike {far['a']} and {far['b']} ({least:.2f})."
        )
    return found


def _skipped(files: Sequence[Mapping[str, str]]) -> list[str]:
    if not files:
        return []
    told = ", ".join(f"{one['file']} ({one['why']})" for one in files[:LISTED])
    more = f", and {len(files) - LISTED:,} more" if len(files) > LISTED else ""
    return [f"{len(files):,} skipped: {told}{more}."]


def all_sentences(document: Mapping[str, Any]) -> list[str]:
    """All of them, in order: the whole's, then each pair's."""
    return [*document["sentences"], *chain.from_iterable(pair["sentences"] for pair in document["pairs"])]
