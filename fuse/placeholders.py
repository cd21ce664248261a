"""The tokens of a fused prompt: one for an image as chat templates write it, one for each branch's visual tokens."""

from collections.abc import Mapping, Sequence

from fuse.anatomy import Member
from fuse.fusable import kind_of
from fuse.fused import FusedBranch
from fuse.new_tokens import NewToken, new_tokens

IMAGE = "<image>"
# families whose chat template does not write the token of `image_token_id`: the config key of the one it writes
_WRITTEN = {"gemma3": ("boi_token_index", 255999)}
_SLOW = "save it with transformers' fast tokenizer, whose tokenizer.json can be extended"


def image_token_of(member: Member, template: str) -> str:
    """What the chat template of a member writes for one image.

    The token of its config, but `<image>` where the template knows that word and not the token, as Aya Vision's does.
    """
    if not member.sees or kind_of(member) != "native" or member.vocabulary is None:
        return IMAGE
    family = member.family.model_type
    config = member.checkpoint.config
    row = config.get("image_token_id", config.get("image_token_index"))
    if family in _WRITTEN:
        key, default = _WRITTEN[family]
        row = config.get(key, default)
    found = next((token for token, i in member.vocabulary.ids.items() if i == row), IMAGE)
    return IMAGE if found not in template and IMAGE in template else found


def fused_tokens(
    host: Member, guests: Sequence[Member], branches: Sequence[FusedBranch], empty: Sequence[str]
) -> tuple[NewToken, ...]:
    """Every token of the fused prompt that the host lacks.

    guests: members whose added tokens come because the recipe says union. Members with a branch always lend theirs.
    empty: placeholders, which take no row. Raises CheckpointError as `new_tokens` does.
    """
    lending = [branch.member for branch in branches if branch.member is not None and branch.member is not host]
    if not (guests or lending or empty):
        return ()
    return new_tokens(host, guests, branches=lending, empty=empty, hint=_SLOW)


def token_ids(host: Member, tokens: Sequence[NewToken], names: Sequence[str]) -> Mapping[str, int]:
    """The row of each named token in the output."""
    known = dict(host.vocabulary.ids) if host.vocabulary else {}
    known |= {token.token: token.row for token in tokens}
    return {name: known[name] for name in names}
