"""The grafts of a finished folder, folded into its language model; or every reason why one does not fold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fuse.export.fused_parts import Parts
from fuse.folded import Changes
from fuse.fused import FoldedGraft, FusedGraft, Lender
from fuse.grafts import folding, lavin_fold_files
from fuse.grafts.donor import Donor
from fuse.plan import Row, Source, without

if TYPE_CHECKING:
    from torch import Tensor

    from fuse.engine.read import Reader

LION = "it reads the residual before the norm, where no layer of the host does"
BRIDGED = "it comes over a bridge that stays beside it"


@dataclass(frozen=True)
class Folds:
    """What becomes of a folder's grafts. folded: in the order of folding. silent: those whose scale is 0, by name."""

    folded: tuple[tuple[FoldedGraft, Changes], ...] = ()
    silent: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        """What the text config says after all folds, and did not before."""
        return {key: value for one, _ in self.folded for key, value in one.changes.items()}


def folds_of(folder: Path, config: Mapping[str, Any], parts: Parts) -> Folds:
    """Every graft of the folder folded, in the order of `folding.ORDER`; `reasons` where any of them does not fold.

    config: the folder's config.json.
    """
    shapes = {name: entry.shape for name, entry in parts.language.items()}
    host = folding.Host(parts.text, parts.basis, config["text_config"], shapes)
    heard = [entry for entry in config.get("grafts") or () if entry.get("scale") != 0]
    silent = tuple(str(entry["name"]) for entry in config.get("grafts") or () if entry.get("scale") == 0)
    reasons = [told for entry in heard if (told := _why_not(entry))]
    able = [_graft(folder, entry, parts) for entry in heard if not _why_not(entry)]
    done: list[tuple[FoldedGraft, Changes]] = []
    for graft in sorted(able, key=lambda graft: folding.ORDER.index(graft.kind)):
        try:
            found = folding.changed(graft, host)
            _check_alone(graft, [one.graft for one, _ in done])
        except ValueError as error:
            reasons.append(f"graft {graft.name} ({graft.kind}) does not fold: {error}")
            continue
        host = host.after(found)
        done.append((FoldedGraft(graft, found.config, graft.kind in folding.WHOLE), found.tensors))
    return Folds(tuple(done), silent, tuple(reasons))


def _why_not(entry: Mapping[str, Any]) -> str:
    kind, why = entry["kind"], ""
    if kind in folding.NEVER:
        why = folding.NEVER[kind]
    elif kind in folding.STAYS:
        why = LION
    elif entry.get("bridge"):
        why = BRIDGED
    elif kind == "lavin" and lavin_fold_files.what_stays(entry["config"]):
        why = "the adapters of a vision tower stay: their routes follow every token"
    return f"graft {entry['name']} ({kind}) does not fold: {why}" if why else ""


def _check_alone(graft: FusedGraft, done: Sequence[FusedGraft]) -> None:
    """ValueError for a graft whose numbers are those of a host without another that is folded."""
    for other in done:
        if graft.kind in folding.WHOLE and other.kind == graft.kind:
            raise ValueError(f"its routes are those of a host without {other.name}")


def _graft(folder: Path, entry: Mapping[str, Any], parts: Parts) -> FusedGraft:
    name, kind = str(entry["name"]), str(entry["kind"])
    tensors = {key: replace(entry, name=key) for key, entry in parts.grafts[name].items()}
    donor = Donor(folder, kind, entry["config"], {}, tensors)
    lender = Lender(f"grafts.{name}", name, tensors, {key: key for key in tensors}, {})
    return FusedGraft(name, kind, entry["config"], float(entry["scale"]), None, None, {}, donor, lender, {})


def routes_of(
    folds: Folds, rows: Sequence[Row], reader: "Reader", config: Mapping[str, Any], parts: Parts
) -> dict[str, "Tensor"]:
    """The routes of LaVIN's adapters, by graft, from one token's pass of the language model with the folds before it.

    rows: those of the output, folds and all. config: the folder's config.json.
    """
    from fuse.engine.blocks import whole
    from fuse.engine.finite import checked
    from fuse.grafts.host_model import filled
    from fuse.grafts.lavin import LavinGraft
    from fuse.grafts.lavin_fold import fixed_routes

    found: dict[str, Tensor] = {}
    table = next(row for row in rows if row.part == "language" and row.canonical == parts.text.embedding)
    told = {**config["text_config"], "vocab_size": table.shape[0]}
    for one, _ in folds.folded:
        if one.whole:
            graft = LavinGraft({**one.graft.config, "parts": "language"}).float()
            sources = {key: Source(one.graft.lender.name, one.graft.donor.tensors[key]) for key in graft.state_dict()}
            graft.load_state_dict({key: checked(reader.tensor(s), s, 0).float() for key, s in sources.items()})
            graft.scale = one.graft.scale
            before = {row.canonical: without(row, one.graft.name) for row in rows if row.part == "language"}
            weights = {name: whole(row, reader).float() for name, row in before.items() if row}
            host: Any = SimpleNamespace(name="the language model", text=parts.text, is_tied=parts.is_tied)
            found[one.graft.name] = fixed_routes(graft, filled(_empty(told, config, parts), weights, host))
        told |= one.changes
    return found


def _empty(text: Mapping[str, Any], config: Mapping[str, Any], parts: Parts) -> Any:
    from transformers import AutoConfig

    from fuse import torchvision_shim
    from fuse.model.language import build_language_model

    torchvision_shim.install()
    made = AutoConfig.for_model(**{**text, "dtype": "float32"})
    return build_language_model(made, str(config.get("host_type")), None, parts.is_tied)
