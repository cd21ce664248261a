"""How many visual tokens an image becomes in an original-LLaVA, MGM or SliME branch. No torch: `plan` counts too."""

from collections.abc import Mapping
from typing import Any

from fuse.branches.anyres import Size
from fuse.branches.llava_config import llava_tokens, sight_of
from fuse.branches.mgm_config import fine_of, mgm_tokens
from fuse.branches.slime_config import slime_sight, slime_tokens


def original_tokens(kind: str, config: Mapping[str, Any], size: Size) -> int:
    """The tokens of an image of (width, height); of a SliME branch, which chooses by the text, the most.

    config: the branch's, with `towers`. Raises CheckpointError for what the branch itself would refuse.
    """
    if kind == "slime":
        sight, choice = slime_sight(config)
        return slime_tokens(sight, choice, size)
    sight = sight_of(config)
    return mgm_tokens(sight, fine_of(config, sight)) if kind == "mgm" else llava_tokens(sight, size)
