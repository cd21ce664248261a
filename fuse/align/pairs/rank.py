"""`fuse inspect pairs`: every pair of members, measured as the other kinds measure, and put in order by one score."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from fuse.align.deltas.measure import bytes_of, measure
from fuse.align.deltas.plan import delta_plan
from fuse.align.deltas.verdicts import weights_of
from fuse.align.encoders.compare import Options
from fuse.align.pairs import compatibility
from fuse.align.pairs.compatibility import FITS, LITTLE, Part
from fuse.align.pairs.eyes import Seen, look, parts_seen
from fuse.align.pairs.members import One, open_all
from fuse.align.tokens.rows import align
from fuse.anatomy import open_member
from fuse.errors import FuseError
from fuse.plan import Plan
from fuse.progress import byte_progress
from fuse.recipe import Recipe
from fuse.recipe_yaml import LoadedRecipe

VERSION = 1


def rank(
    locations: Sequence[str], base: str, images: Path | None = None, options: Options | None = None
) -> dict[str, Any]:
    """The document of `fuse inspect pairs`: every pair of members, the highest score first.

    locations: folders. base: that of the language model they share. images: a folder, for what is measured on features;
    without it those parts are missing. options: how features are measured and whether progress is shown.

    Parts are those of `fuse.align.pairs.compatibility`, each {"value", "why"}; a member whose language model `fuse`
    does not merge over the base has a `refused` and scores 0. `weights` are task arithmetic's, for the two alone, where
    they fit at all. Raises RecipeError for fewer than two members or one that is given twice, and what opening and
    measuring them raises.
    """
    options = options or Options()
    members = open_all(locations)
    plan, refused = _plan(members, base)
    seen = look(members, images, options)
    deltas: dict[str, Any] | None = None
    if plan is not None:
        with byte_progress(bytes_of(plan), shown=options.shown, name="deltas") as progress:
            deltas = measure(plan, top=1, progress=progress)
    pairs = [_pair(a, b, refused, deltas, seen) for a, b in combinations(members, 2)]
    pairs.sort(key=lambda pair: (-1.0 if pair["score"] is None else pair["score"], pair["fit"] or 0.0), reverse=True)
    return {
        "inspect": "pairs", "version": VERSION, "base": base,
        "images": seen.document["images"] if seen.document else None,
        "skipped": seen.document["skipped"] if seen.document else [],
        "members": {
            one.name: {
                "folder": str(one.member.folder), "sees": one.member.sees, "refused": refused.get(one.name),
                "unseen": seen.unseen.get(one.name),
            }
            for one in members
        },
        "thresholds": {"fits": FITS, "little": LITTLE}, "pairs": pairs,
    }  # fmt: skip


def _plan(members: Sequence[One], base: str) -> tuple[Plan | None, dict[str, str]]:
    """The plan of all task vectors, and why a member is not in it, by name: the sentence that a merge gives.

    Members join one after another. Raises what is wrong with the base itself.
    """
    open_member("base", base, revision=None, relative_to=None)
    plan, joined, refused = None, [], {}
    for one in members:
        try:
            plan = delta_plan(_recipe([*joined, one], base))
            joined.append(one)
        except FuseError as error:
            refused[one.name] = error.problem
    return plan, refused


def _recipe(members: Sequence[One], base: str) -> LoadedRecipe:
    """Their task arithmetic. An output must see if a member does; one branch is enough to plan it."""
    seeing = next((one for one in members if one.member.sees), None)
    given: dict[str, Any] = {
        "base": str(Path(base).resolve()) if Path(base).exists() else base,
        "members": {one.named: one.location for one in members},
        "language": {"method": "task_arithmetic", "weights": 1.0},
    }  # fmt: skip
    file = Path("pairs")
    if seeing:
        given |= {"vision": [seeing.named], "output": {"host": seeing.named, "model": "fuse"}}
        file = Path(seeing.location).parent / file  # the towers of an original layout lie beside the member
    return LoadedRecipe(Recipe.model_validate(given), file, "", {})


def _pair(
    a: One, b: One, refused: Mapping[str, str], deltas: dict[str, Any] | None, seen: Seen
) -> dict[str, Any]:  # fmt: skip
    geometry, weights, cosine = _geometry(a, b, refused, deltas)
    parts = {"tokens": _tokens(a, b, refused), **geometry, **parts_seen(a, b, seen)}
    found = compatibility.score(parts, (a.name, b.name), cosine)
    return {
        "a": a.name, "b": b.name, "score": found.score, "fit": found.fit, "weakest": found.weakest,
        "missing": list(found.missing), "parts": {name: asdict(parts[name]) for name in compatibility.PARTS},
        "cosine": cosine, "weights": weights if found.fit else None, "verdict": found.verdict,
    }  # fmt: skip


def _tokens(a: One, b: One, refused: Mapping[str, str]) -> Part:
    for one in (a, b):
        if one.name in refused:
            return Part(0.0, refused[one.name])
    if a.speaker is None or b.speaker is None:
        return Part(None, f"{(a if a.speaker is None else b).name} has no tokenizer that fuse reads")
    how = align(a.speaker, b.speaker)
    if why := how.why or how.refused:
        return Part(0.0, why)
    return compatibility.tokens(how.same_ids, len(a.speaker.vocabulary.ids), len(b.speaker.vocabulary.ids))


def _geometry(
    a: One, b: One, refused: Mapping[str, str], deltas: dict[str, Any] | None
) -> tuple[dict[str, Part], dict[str, Any] | None, float | None]:
    """distance, size and signs; the weights of the two alone; the cosine of their task vectors."""
    if deltas is None or a.name in refused or b.name in refused:
        absent = Part(None, "not merged over the base")
        return dict.fromkeys(("distance", "size", "signs"), absent), None, None
    at = [deltas["members"].index(one.named) for one in (a, b)]
    whole = next(part for part in deltas["parts"] if part["part"] == "language")
    own = {name: [whole[name][i] or 0.0 for i in at] for name in ("norm", "relative", "base_norm")}
    parts = {
        "distance": compatibility.distance(own["relative"]), "size": compatibility.size(own["norm"]),
        "signs": compatibility.signs(whole["weighted_agreement"][at[0]][at[1]]),
    }  # fmt: skip
    both = {**own, "product": [[whole["product"][i][j] for j in at] for i in at]}
    weights = weights_of(both, [a.name, b.name]) if any(own["norm"]) else None
    return parts, weights, whole["cosine"][at[0]][at[1]]
