"""Tokens with a role: which begins a text, ends it, fills it up, stands for an image; with their ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuse import families, strict_json
from fuse.align.tokens.folder import Speaker

ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
# endings of config keys that give the id of a token
ENDINGS = ("_token_id", "_token_index")
NOT_ROLES = frozenset({"decoder_start", "forced_bos", "forced_eos"})  # of answers, not of prompts


@dataclass(frozen=True)
class Special:
    """A token with a role. token: None where no token has the id; id: None where the tokenizer has no such token.

    stated: the id that config.json gives the role, where it gives one.
    """

    token: str | None
    id: int | None
    stated: int | None = None

    @property
    def disagrees(self) -> bool:
        """Tokenizer and config.json give the role to two ids."""
        return self.stated is not None and self.id is not None and self.stated != self.id


def special_tokens(speaker: Speaker) -> dict[str, Special]:
    """Role -> token: the tokenizer's (tokenizer_config.json, else special_tokens_map.json), then those of config.json.

    config.json names further roles by its keys: `image_token_id` is the role image. Where both name a role the
    tokenizer's token is told, with the config's id beside it.
    """
    stated, ids = _stated(speaker), speaker.vocabulary.ids
    by_id = {row: token for token, row in ids.items()}
    found = {}
    for role, token in named_tokens(speaker).items():
        found[role] = Special(token, ids.get(token), stated.pop(role, None))
    return found | {role: Special(by_id.get(row), row, row) for role, row in stated.items()}


def named_tokens(speaker: Speaker) -> dict[str, str]:
    """Role -> token, as the tokenizer's files name them; without roles that no file fills."""
    file = speaker.folder / "special_tokens_map.json"
    older = strict_json.read_object(file) if file.is_file() else {}
    found = {role: _text(speaker.settings.get(f"{role}_token", older.get(f"{role}_token"))) for role in ROLES}
    return {role: token for role, token in found.items() if token is not None}


def template_names(speaker: Speaker) -> dict[str, str]:
    """What a chat template may name: bos_token, eos_token ..., and the tokenizer's further named tokens."""
    found = {f"{role}_token": token for role, token in named_tokens(speaker).items()}
    more = speaker.settings.get("model_specific_special_tokens", speaker.settings.get("extra_special_tokens"))
    for key, value in {**(more if isinstance(more, Mapping) else {}), **speaker.settings}.items():
        if key.endswith("_token") and (token := _text(value)) is not None:
            found[key] = token
    return found


def ends(speaker: Speaker) -> tuple[int, ...]:
    """The ids that end an answer, as generation_config.json says, else config.json; sorted."""
    file = speaker.folder / "generation_config.json"
    given = strict_json.read_object(file).get("eos_token_id") if file.is_file() else None
    if given is None:
        given = _text_config(speaker).get("eos_token_id", speaker.config.get("eos_token_id"))
    return tuple(sorted({n for n in (given if isinstance(given, list) else [given]) if type(n) is int}))


def _stated(speaker: Speaker) -> dict[str, int]:
    """Role -> id of the configs: the language model's first, then what stands around it."""
    found: dict[str, int] = {}
    for part in (_text_config(speaker), speaker.config):
        for key, value in part.items():
            ending = next((one for one in ENDINGS if key.endswith(one)), None)
            role = key.removesuffix(ending or "")
            if ending and type(value) is int and value >= 0 and role not in NOT_ROLES and not role.startswith("_"):
                found.setdefault(role, value)
    return found


def _text_config(speaker: Speaker) -> Mapping[str, Any]:
    member = speaker.member
    return families.text_config(member.checkpoint.config, member.family, str(member.folder))


def _text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None
