"""The tables of a model card: members, branches, grafts, licences, sha256."""

import json
from collections.abc import Mapping, Sequence

from fuse.anatomy import Member
from fuse.card_text import cell, table
from fuse.fused import Fit, Fits, Fused, FusedBranch
from fuse.fused_view import CODE, NORMS, bridge_text, folded_text, graft_text
from fuse.licence_files import UNSTATED
from fuse.licence_terms import terms_of
from fuse.licences import RollUp, verdict_lines
from fuse.plan import Plan
from fuse.sizes import counted
from fuse.visual_tokens import encoder_name

BRANCHES = "One language model, in the layout of the host, reads the visual tokens of every branch, one after another."
THIS = "this folder"
SHOWN = 4  # files of one source, or of the output; fuse.json has the others


def member_table(plan: Plan) -> str:
    """Who takes part: as the recipe names them, pinned to which commit, under which licence."""
    return table(
        ("member", "origin", "revision", "licence"),
        [(m.name, cell(_origin(m)), cell(_revision(m)), cell(m.licence or UNSTATED)) for m in plan.members],
    )  # fmt: skip


def _origin(member: Member) -> str:
    return member.checkpoint.origin + (f" + {member.adapter.checkpoint.origin}" if member.adapter else "")


def _revision(member: Member) -> str:
    found = [member.checkpoint.revision, member.adapter.checkpoint.revision if member.adapter else ""]
    return " + ".join(dict.fromkeys(commit for commit in found if commit)) or "-"


def branch_table(fused: Fused, fits: Fits) -> str:
    """The branches, in the order of their visual tokens."""
    bridges = {b.name: f"{bridge_text(b.bridge)}, {r2_text(fits[b.name])}" for b in fused.branches if b.bridge}
    rows = [
        (b.name, cell(_kind(b) + bridges.get(b.name, "")), cell(encoder_name(b)), _tokens(b)) for b in fused.branches
    ]
    heads = ("branch", "kind", "encoder", "visual tokens")
    return f"## Branches\n\n{BRANCHES}\n\n{table(heads, rows)}\n" if rows else ""


def _tokens(branch: FusedBranch) -> str:
    """How many visual tokens, and what the branch asks for among the others."""
    text = "all" if branch.max_tokens is None else f"at most {branch.max_tokens:,} ({branch.prune})"
    text += f", behind the separator {cell(json.dumps(branch.separator))}" if branch.separator is not None else ""
    text += ", at the positions of the first branch" if branch.positions == "shared" else ""
    return text + (f", with the {NORMS[branch.norm]}" if branch.norm in NORMS else "")


def _kind(branch: FusedBranch) -> str:
    """Whose code a branch follows: the model_type of a class of transformers, or a name."""
    if branch.kind == "native":
        return str(branch.config.get("model_type"))
    return CODE.get(branch.kind, "encoder from files")


def graft_table(fused: Fused, fits: Fits) -> str:
    """The grafts that are heard beside the weights."""
    fit = {name: f", {r2_text(own)}" for name, own in fits.items()}
    rows = [(g.name, cell(g.lender.origin), cell(graft_text(g) + fit.get(g.name, ""))) for g in fused.grafts]
    return f"## Grafts\n\n{table(('graft', 'from', 'what it is'), rows)}\n" if rows else ""


def r2_text(fits: Sequence[Fit]) -> str:
    """`R2 0.931 to 0.994 on held-out data`: the worst and the best map of a bridge."""
    found = [fit.r2 for fit in fits]
    return f"R2 {min(found):.3f} to {max(found):.3f} on held-out data"


def folded_table(plan: Plan) -> str:
    """The grafts that became part of the host's weights."""
    rows = [(one.graft.name, cell(one.graft.lender.origin), cell(folded_text(plan, one))) for one in plan.folded]
    return f"## Folded grafts\n\n{table(('graft', 'from', 'what it was'), rows)}\n" if rows else ""


def licence_section(licences: RollUp) -> str:
    """What every parent states, and what that means together."""
    rows = [
        (cell(p.name), cell(p.origin), cell(p.stated.licence or UNSTATED), cell(p.stated.link or p.stated.file or "-"),
         terms_of(p.stated.licence).asks if p.stated.licence else "-")
        for p in licences.parents
    ]  # fmt: skip
    told = "".join(f"- {cell(line[0].upper() + line[1:])}.\n" for line in verdict_lines(licences))
    heads = ("parent", "origin", "licence", "stated in", "which asks in short")
    return f"## Licences\n\n{table(heads, rows)}\n{told}- This repeats what the parents state and is no legal advice.\n"


def sha256_section(sources: Mapping[str, Mapping[str, str]], outputs: Mapping[str, str]) -> str:
    """The sha256 of the weights that were read and written, "not hashed" where that was left out."""
    rows = [row for name, files in {**sources, THIS: outputs}.items() for row in sha256_rows(name, files)]
    return f"## SHA-256\n\n{table(('of', 'file', 'sha256'), rows)}" if rows else ""


def sha256_rows(name: str, files: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Its rows of one source: the first files, and how many there are besides."""
    shown = list(files.items())[: SHOWN if len(files) > SHOWN + 1 else None]
    rows = [(cell(name), cell(file), f"`{sha256}`" if sha256 else "not hashed") for file, sha256 in shown]
    left = len(files) - len(shown)
    return [*rows, *([(cell(name), f"{counted(left, 'more file')}", "in `fuse.json`")] if left else [])]
