"""How a tokenizer cuts text, part by part, as its tokenizer.json writes it; and what it writes before and behind."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.align.tokens.folder import FAST, Speaker
from fuse.align.tokens.special import named_tokens
from fuse.errors import CheckpointError

PARTS = ("normalizer", "pre_tokenizer", "model", "merges", "scores", "post_processor", "decoder")
CUTTING = PARTS[:5]  # what decides which tokens a text becomes; the post-processor adds some, the decoder joins them
TABLES = ("vocab", "merges")  # of the model, which are told apart
INNER = ("normalizers", "pretokenizers", "processors", "decoders")  # where a sequence of each part keeps its steps
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Part:
    """What one part is, in a word, and the sha256 of its settings ("" where there is none)."""

    word: str
    digest: str


@dataclass(frozen=True)
class Cutting:
    """The parts of a tokenizer by name; the flags of its added tokens; what it puts before and behind a text.

    parts is empty for a tokenizer that has no tokenizer.json: its class decides. before, behind: tokens, or None where
    no file tells. stated: what tokenizer_config.json says in `add_bos_token` and `add_eos_token`, by role; where there
    is a tokenizer.json, transformers 5 goes by that one's post-processor alone, and so do we.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)
    flags: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    before: tuple[str, ...] | None = None
    behind: tuple[str, ...] | None = None
    stated: Mapping[str, bool] = field(default_factory=dict)


def read_cutting(speaker: Speaker) -> Cutting:
    """The parts of a folder's tokenizer.json. Raises CheckpointError where a part is not what it should be."""
    stated = _stated(speaker)
    if not speaker.is_fast:
        before, behind = _by_class(stated, speaker)
        return Cutting(before=before, behind=behind, stated=stated)
    path = speaker.folder / FAST
    data = strict_json.read_bytes(path)
    if data not in _parsed:  # members of a family mostly share the file
        try:
            _parsed[data] = _parse(data, path)
        except RecursionError:
            raise CheckpointError("nested too deeply", where=path) from None
    return replace(_parsed[data], stated=stated)


_parsed: dict[bytes, Cutting] = {}


def _parse(data: bytes, path: Path) -> Cutting:
    whole = json.loads(data)  # read_vocabulary has read it strictly
    model = whole["model"]
    parts = {name: whole.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    for name, value in parts.items():
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{name} is not an object", where=path)
    found = {name: Part(_word(value), _digest(value)) for name, value in parts.items()}
    settings = {key: value for key, value in model.items() if key not in TABLES}
    found["model"] = Part(str(model.get("type", "?")), _digest(settings))
    found["merges"], found["scores"] = _merges(model.get("merges")), _scores(model["vocab"])
    flags = {row["content"]: tuple(bool(row.get(flag)) for flag in FLAGS) for row in whole.get("added_tokens") or ()}
    return Cutting({name: found[name] for name in PARTS}, flags, *_around(parts["post_processor"]))


def _word(value: Mapping[str, Any] | None) -> str:
    """The type of a part, with the types inside a sequence: Sequence(Split, ByteLevel)."""
    if value is None:
        return "none"
    inner = [one for key in INNER for one in _list(value.get(key)) if isinstance(one, dict)]
    kind = str(value.get("type", "?"))
    return f"{kind}({', '.join(map(_word, inner))})" if inner else kind


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _digest(value: Any) -> str:
    if value is None:
        return ""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _merges(merges: Any) -> Part:
    """The pairs that a BPE joins, in order; files write a pair as one text or as two."""
    if not isinstance(merges, list) or not merges:
        return Part("none", "")
    pairs = [" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in merges]
    return Part(f"{len(pairs):,}", hashlib.sha256("\n".join(pairs).encode("utf-8", "surrogatepass")).hexdigest())


def _scores(vocab: Any) -> Part:
    """The scores of the pieces of a Unigram model."""
    if not isinstance(vocab, list) or not vocab:
        return Part("none", "")
    return Part(f"{len(vocab):,}", _digest([row[1] if len(row) > 1 else None for row in vocab]))


def _stated(speaker: Speaker) -> dict[str, bool]:
    """Role -> whether tokenizer_config.json asks for its token around a text; of bos and eos, where it says so."""
    given = {role: speaker.settings.get(f"add_{role}_token") for role in ("bos", "eos")}
    return {role: value for role, value in given.items() if isinstance(value, bool)}


def _by_class(stated: Mapping[str, bool], speaker: Speaker) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """What a slow tokenizer writes around a text: what is stated; the class's own habit is not known here."""
    named = named_tokens(speaker)
    before, behind = (
        None if role not in stated else (named[role],) if stated[role] and role in named else ()
        for role in ("bos", "eos")
    )  # fmt: skip
    return before, behind


def _around(post: Mapping[str, Any] | None) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """The special tokens that the post-processor's template writes before and behind one text."""
    steps = [] if post is None else _list(post.get("processors")) or [post]
    template = next((one for one in steps if isinstance(one, dict) and one.get("type") == "TemplateProcessing"), None)
    if template is None:
        known = all(isinstance(one, dict) and one.get("type") == "ByteLevel" for one in steps)
        return ((), ()) if known else (None, None)
    single = [one for one in _list(template.get("single")) if isinstance(one, dict)]
    at = next((i for i, one in enumerate(single) if "Sequence" in one), len(single))
    sides = (single[:at], single[at + 1 :])
    before, behind = (
        tuple(str(one["SpecialToken"].get("id")) for one in side if isinstance(one.get("SpecialToken"), dict))
        for side in sides
    )
    return before, behind
