"""The eyes of a member in the layout of LLaVA's, MGM's or SliME's own code, as a recipe would make a branch of them."""

import json
from typing import Any

from torch import nn

from fuse.align.features.load import load_branch
from fuse.anatomy import Member
from fuse.branches.kinds import open_eyes
from fuse.branches.views import FILE
from fuse.errors import CheckpointError
from fuse.planner import make_plan
from fuse.recipe_yaml import parse_recipe
from fuse.safetensors_header import TensorEntry

RECIPE = """
members: {{eyes: {folder}}}
language: {{method: linear, weights: {{eyes: 1}}}}
vision: [eyes]
output: {{model: fuse}}
"""


def open_original(member: Member) -> tuple[dict[str, Any], Any, nn.Module]:
    """(`kind` and `config` of the branch, its eyes, its module). member: whose own tensors are on this machine.

    Towers that the member does not hold are opened where its config says, beside the member or on the hub. Raises what
    a plan of it raises.
    """
    folder, origin = member.folder, member.checkpoint.origin
    recipe = RECIPE.format(folder=json.dumps(origin if member.checkpoint.repository else str(folder.resolve())))
    try:
        plan = make_plan(parse_recipe(folder.resolve().parent / "fuse inspect", recipe))
    except CheckpointError as error:
        hint = "its towers are looked for beside the member and on the hub" if "tower" in error.hint else error.hint
        raise CheckpointError(error.problem, where=error.where, hint=hint) from None
    assert plan.fused is not None
    (made,) = plan.fused.branches
    for lender in made.lenders:
        lender.fetch()
    tensors: dict[str, TensorEntry] = {
        row.name.removeprefix(made.prefix): row.sources[0].tensor
        for row in plan.rows
        if row.name.startswith(made.prefix)
    }
    branch = {"name": str(folder), "kind": made.kind, "config": dict(made.config)}
    holders = [one for one in (folder, *made.folders) if (one / FILE).is_file()]
    return branch, open_eyes(branch, holders[0] if holders else folder), load_branch(branch, tensors, folder)
