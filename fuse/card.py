"""The model card of an output folder."""

import json
import re
from collections import Counter
from collections.abc import Sequence

from fuse.anatomy import Member
from fuse.errors import one_line, printable
from fuse.fused import Fit, Fits, Fused, FusedBranch
from fuse.fused_view import CODE, NORMS, bridge_text, folded_text, graft_text
from fuse.licence_files import UNSTATED
from fuse.plan import Plan
from fuse.sizes import counted
from fuse.stores.address import is_store
from fuse.visual_tokens import encoder_name

OTHER = "other"
OTHERS = {"fold": "folded", "make": "made"}  # what else becomes of tensors


def model_card(plan: Plan, fits: Fits | None = None) -> str:
    """README.md: front matter for the hub, what was merged, the recipe, how to load it.

    fits: how well the maps of bridges fit, by graft.
    """
    from huggingface_hub import ModelCardData

    sees = bool(plan.fused.branches) if plan.fused else plan.host.sees
    licences = {licence for m in plan.members for licence in m.licence.split(" + ")}
    opened = [c for m in plan.members for c in (m.checkpoint, m.adapter.checkpoint if m.adapter else None) if c]
    from_hub = [c.origin.removeprefix("hf://") for c in opened if c.revision and not is_store(c.origin)]
    hub_ids = list(dict.fromkeys(from_hub))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=["merge", "fuse", *(["multimodal"] if sees else [])],
        license=licences.pop() if len(licences) == 1 and not licences & {"", UNSTATED} else OTHER,
        base_model=hub_ids or None,
    )
    if hub_ids:
        data["base_model_relation"] = "merge"
    return f"---\n{data.to_yaml()}\n---\n\n{_body(plan, fits or {})}"


def _body(plan: Plan, fits: Fits) -> str:
    count = Counter(row.action for row in plan.rows)
    others = "".join(f"{count[key]:,} {word}, " for key, word in OTHERS.items() if count[key])
    language = "AutoModelForSeq2SeqLM" if plan.host.text.name == "t5" else "AutoModelForCausalLM"
    auto = "AutoModelForImageTextToText" if plan.host.sees or plan.fused else language
    members = "\n".join(
        f"| {m.name} | {_cell(_origin(m))} | {_cell(m.checkpoint.revision or '-')} | {_cell(m.licence or UNSTATED)} |"
        for m in plan.members
    )
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", plan.recipe_text)), default=0) + 1)
    loading = (
        f"```python\n{'import fuse  # registers the class' + chr(10) if plan.fused else ''}"
        f"from transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("path/to/this/folder", dtype="auto", device_map="auto")\n```\n'
        if plan.host.family.native or plan.fused
        else "This folder has the layout of the original code of its family, which is what loads it.\n"
    )
    copied = {row.sources[0].member for row in plan.rows if row.action == "copy"}
    givers = [m.name for m in plan.members if m.name in copied] or [plan.host.name]
    whose = "" if plan.fused else f" from {' and '.join(f'`{name}`' for name in givers)}"
    return (
        f"# A {'fused' if plan.fused else 'merged'} model\n\n"
        f"Made without training: {counted(count['merge'], 'tensor')} merged, {count['copy']:,} copied{whose}, {others}"
        f"{len(plan.drops):,} left out by the recipe (listed with reasons in `fuse.json`).\n\n"
        f"| member | origin | revision | licence |\n|---|---|---|---|\n{members}\n\n"
        f"{_branches(plan, fits)}{_folded_table(plan)}"
        f"## Recipe\n\n{fence}yaml\n{_seen(plan.recipe_text.rstrip())}\n{fence}\n\n"
        f"## Load\n\n{loading}"
    )


def _branches(plan: Plan, fits: Fits) -> str:
    """The tables of a fused folder: branches in the order of their visual tokens, and grafts."""
    if plan.fused is None:
        return ""
    return (_branch_table(plan.fused, fits) if plan.fused.branches else "") + _graft_table(plan.fused, fits)


def _graft_table(fused: Fused, fits: Fits) -> str:
    fit = {name: f", {r2_text(own)}" for name, own in fits.items()}
    rows = "\n".join(
        f"| {g.name} | {_cell(g.lender.origin)} | {_cell(graft_text(g) + fit.get(g.name, ''))} |" for g in fused.grafts
    )
    return f"## Grafts\n\n| graft | from | what it is |\n|---|---|---|\n{rows}\n\n" if rows else ""


def r2_text(fits: Sequence[Fit]) -> str:
    """`R2 0.931 to 0.994 on held-out data`: the worst and the best map of a bridge."""
    found = [fit.r2 for fit in fits]
    return f"R2 {min(found):.3f} to {max(found):.3f} on held-out data"


def _folded_table(plan: Plan) -> str:
    rows = "\n".join(
        f"| {one.graft.name} | {_cell(one.graft.lender.origin)} | {_cell(folded_text(plan, one))} |"
        for one in plan.folded
    )
    return f"## Folded grafts\n\n| graft | from | what it was |\n|---|---|---|\n{rows}\n\n" if rows else ""


def _branch_table(fused: Fused, fits: Fits) -> str:
    bridges = {b.name: f"{bridge_text(b.bridge)}, {r2_text(fits[b.name])}" for b in fused.branches if b.bridge}
    rows = "\n".join(
        f"| {b.name} | {_cell(_kind(b) + bridges.get(b.name, ''))} | {_cell(encoder_name(b))} | "
        f"{'all' if b.max_tokens is None else f'at most {b.max_tokens:,} ({b.prune})'}{_options(b)} |"
        for b in fused.branches
    )
    return (
        "## Branches\n\nOne language model, in the layout of the host, reads the visual tokens of every "
        f"branch, one after another.\n\n| branch | kind | encoder | visual tokens |\n|---|---|---|---|\n{rows}\n\n"
    )


def _options(branch: FusedBranch) -> str:
    """What the branch asks for among the others."""
    text = f", behind the separator {_cell(json.dumps(branch.separator))}" if branch.separator is not None else ""
    text += ", at the positions of the first branch" if branch.positions == "shared" else ""
    return text + (f", with the {NORMS[branch.norm]}" if branch.norm in NORMS else "")


def _kind(branch: FusedBranch) -> str:
    """Whose code a branch follows: the model_type of a class of transformers, or a name."""
    if branch.kind == "native":
        return str(branch.config.get("model_type"))
    return CODE.get(branch.kind, "encoder from files")


def _origin(member: Member) -> str:
    return member.checkpoint.origin + (f" + {member.adapter.checkpoint.origin}" if member.adapter else "")


def _seen(text: str) -> str:
    """The text with what would hide or turn a part of it escaped; tabs stay."""
    return "\t".join(map(printable, text.split("\t")))


def _cell(text: str) -> str:
    return re.sub(r"([|<>`\[\]\\])", r"\\\1", one_line(text))
