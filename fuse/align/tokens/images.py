"""What an image is in the prompt of a folder: which token stands for it, and how many visual tokens it becomes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse.align.tokens.folder import Speaker
from fuse.branches.anyres import Size
from fuse.branches.original_tokens import original_tokens
from fuse.errors import FuseError
from fuse.fusable import kind_of
from fuse.image_files import Sizes
from fuse.native_tokens import NATIVE
from fuse.placeholders import image_token_of
from fuse.visual_tokens import DEFAULT_SIZE


@dataclass(frozen=True)
class ImagePlace:
    """The place of an image.

    token: what the chat template writes for one, None where the folder sees none; id: its row. tokens: visual tokens
    of an image of `size` (width, height), None where the configs alone do not tell, and why then says why.
    """

    token: str | None
    id: int | None
    tokens: int | None
    size: Size = DEFAULT_SIZE
    why: str = ""


def image_place(speaker: Speaker, template: str) -> ImagePlace:
    """Where an image goes, and what it costs. template: the folder's chat template, "" for none."""
    if not (speaker.fused or speaker.member.sees):
        return ImagePlace(None, None, None, why="it sees no images")
    if speaker.fused:
        given = speaker.config.get("image_token")
        token = given if isinstance(given, str) else None
        branches = [one for one in speaker.config.get("branches") or () if isinstance(one, Mapping)]
        counts = [_branch_tokens(speaker, one) for one in branches]
        if token is None or not branches:
            return ImagePlace(None, None, None, why="it sees no images")
    else:
        token, counts = image_token_of(speaker.member, template), [_own_tokens(speaker)]
    why = next((one for one in counts if isinstance(one, str)), "")
    total = None if why else sum(one for one in counts if isinstance(one, int))
    return ImagePlace(token, speaker.vocabulary.ids.get(token), total, why=why)


def _own_tokens(speaker: Speaker) -> int | str:
    """The visual tokens of the member's own images, or why nobody knows."""
    kind = speaker.member.family.model_type
    if kind_of(speaker.member) != "native":
        return "its towers tell, which are not opened"
    return _native_tokens(kind, Sizes(speaker.config, speaker.folder))


def _native_tokens(kind: str, sizes: Sizes) -> int | str:
    if kind not in NATIVE:
        return f"nothing counts the visual tokens of {kind}"
    try:
        return NATIVE[kind](sizes, DEFAULT_SIZE).tokens
    except FuseError as error:
        return error.problem


def _branch_tokens(speaker: Speaker, branch: Mapping[str, Any]) -> int | str:
    """The same of a branch of a fused folder, within its budget."""
    config, kind = branch.get("config"), str(branch.get("kind"))
    if not isinstance(config, Mapping):
        return "config.json does not describe its branches"
    if kind == "native":
        found = _native_tokens(
            str(config.get("model_type")), Sizes(config, speaker.folder / "branches" / str(branch.get("name")))
        )
    elif kind == "encoder":
        return "the encoder of a branch tells, which is not opened"
    else:
        try:
            found = original_tokens(kind, config, DEFAULT_SIZE)
        except FuseError as error:
            found = error.problem
    budget = branch.get("max_tokens")
    return min(found, budget) if isinstance(found, int) and type(budget) is int else found
