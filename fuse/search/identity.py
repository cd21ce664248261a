"""What makes two searches the same: a log is gone on with where nothing differs that decides a trial's numbers."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse.evaluate.log import data_digests, file_digest, folder_digests
from fuse.evaluate.questions import Question
from fuse.plan import Plan
from fuse.recipe_yaml import LoadedRecipe

if TYPE_CHECKING:
    from fuse.search.run import Options


def identity_of(
    loaded: LoadedRecipe, plan: Plan, data: Path, questions: Sequence[Question], options: "Options", holdout: float
) -> dict[str, Any]:
    """The first line of a search's log, by the names of the options.

    questions: for tuning and for testing, whose images count. holdout: the share that the options come to.
    """
    digests = data_digests(data, questions)
    return {
        "recipe": sha256(loaded.text.encode()).hexdigest(), **digests, "members": members_digest(plan),
        "over": list(options.over), "sum": list(options.sum), "method": options.method, "objective": options.objective,
        "steps": options.steps, "seed": options.seed, "max-tokens": options.max_tokens,
        "holdout": None if options.test else holdout,
        "test": sha256(options.test.read_bytes()).hexdigest() if options.test else None,
    }  # fmt: skip


def members_digest(plan: Plan) -> str:
    """sha256 over what the plan's models are made from: hub commits, and the loaded files of local folders.

    The weights of a hub member may not be here yet; its commit says which they are.
    """
    found: dict[str, str | Mapping[str, str]] = {
        member.name: member.checkpoint.revision or folder_digests(member.checkpoint.folder) for member in plan.members
    }
    for lender in plan.lenders:
        revision = lender.checkpoint.revision if lender.checkpoint else ""
        found[lender.name] = revision or {file.name: file_digest(file) for file in lender.files}
    for adapter in (member.adapter for member in plan.members):
        if adapter and not adapter.checkpoint.revision:  # its config decides too
            found[adapter.name] = folder_digests(adapter.folder)
    return sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
