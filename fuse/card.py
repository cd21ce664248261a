"""The model card of an output folder."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fuse.card_tables import (
    branch_table,
    folded_table,
    graft_table,
    licence_section,
    member_table,
    sha256_section,
)
from fuse.card_text import cell, fenced
from fuse.card_use import Used, use_text, used
from fuse.checkpoint import Checkpoint
from fuse.front_matter import read_front_matter
from fuse.fused import Fits
from fuse.licence_files import OTHER
from fuse.licences import RollUp, roll_up
from fuse.plan import Plan
from fuse.sizes import counted
from fuse.stores.address import is_store

OTHERS = {"fold": "folded", "make": "made"}  # what else becomes of tensors


def model_card(
    plan: Plan, folder: Path, sources: Mapping[str, Mapping[str, str]], outputs: Mapping[str, str], fits: Fits
) -> str:
    """README.md: front matter for the hub, what was merged, the recipe, how to use it, licences, hashes.

    folder: the output, which has its config and tokenizer. sources, outputs: sha256 by file, "" where not hashed, of
    each member and of what else lends tensors, and of the output. fits: how well the maps of bridges fit, by graft.
    """
    licences = roll_up(plan)
    fused = branch_table(plan.fused, fits) + graft_table(plan.fused, fits) if plan.fused else ""
    return (
        f"---\n{front_matter(plan, licences, used(folder)).to_yaml()}\n---\n\n"
        f"# A {'fused' if plan.fused else 'merged'} model\n\n{_summary(plan)}\n\n{member_table(plan)}\n"
        f"{fused}{folded_table(plan)}"
        f"## Recipe\n\n{fenced(plan.recipe_text.rstrip(), 'yaml')}\n"
        f"{use_text(folder)}{_disagreements(plan)}\n"
        f"{licence_section(licences)}\n{sha256_section(sources, outputs)}"
    )


def _summary(plan: Plan) -> str:
    count = Counter(row.action for row in plan.rows)
    others = "".join(f"{count[key]:,} {word}, " for key, word in OTHERS.items() if count[key])
    copied = {row.sources[0].member for row in plan.rows if row.action == "copy"}
    givers = [m.name for m in plan.members if m.name in copied] or [plan.host.name]
    whose = "" if plan.fused else f" from {' and '.join(f'`{name}`' for name in givers)}"
    return (f"Made without training: {counted(count['merge'], 'tensor')} merged, {count['copy']:,} copied{whose}, "
            f"{others}{len(plan.drops):,} left out by the recipe (listed with reasons in `fuse.json`).")  # fmt: skip


def _disagreements(plan: Plan) -> str:
    """What the members did not agree in, which the licences are told of apart."""
    told = [v for v in plan.verdicts if not v.agrees and v.topic != "licence"]
    lines = "".join(f"- {cell(v.topic)}: {cell(v.text)}\n" for v in told)
    return f"\n## Where the members differ\n\n{lines}" if lines else ""


def front_matter(plan: Plan, licences: RollUp, how: Used) -> Any:
    """The hub's metadata of the output, as a `ModelCardData`: nothing that no parent states."""
    from huggingface_hub import ModelCardData

    opened = [c for m in plan.members for c in (m.checkpoint, m.adapter.checkpoint if m.adapter else None) if c]
    hub_ids = list(
        dict.fromkeys(c.origin.removeprefix("hf://") for c in opened if c.revision and not is_store(c.origin))
    )
    data = ModelCardData(
        library_name=None if how.form == "original" else "transformers",
        pipeline_tag="image-text-to-text" if how.sees else "text-generation",
        tags=["merge", "fuse", *(["multimodal"] if how.sees else [])],
        language=_stated(opened, "language"),
        datasets=_stated(opened, "datasets"),
        base_model=hub_ids or None,
    )
    for key, value in licence_keys(licences).items():
        data[key] = value
    if hub_ids:
        data["base_model_relation"] = "merge"
    return data


def licence_keys(licences: RollUp) -> dict[str, Any]:
    """`license`, and for one that the hub has no word for `license_name` and `license_link`."""
    if not licences.agreed:
        return {"license": OTHER}
    if licences.named:
        found = {"license": OTHER, "license_name": licences.agreed}
        return found | ({"license_link": licences.link} if licences.link else {})
    words = licences.agreed.split(" + ")
    return {"license": words[0] if len(words) == 1 else words}


def _stated(opened: Iterable[Checkpoint], key: str) -> list[str] | None:
    """The words of a key that parents' cards state, each once; None where none does."""
    found = [word for one in opened for word in read_front_matter(one.folder).get(key, ()) if _is_word(word)]
    return sorted(set(found)) or None


def _is_word(text: str) -> bool:
    return len(text) <= 100 and text.isascii() and all(c.isalnum() or c in "-_./" for c in text)
