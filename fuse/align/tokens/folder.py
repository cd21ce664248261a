"""A folder as `fuse inspect tokens` sees it: its language model, its configs, its tokenizer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.anatomy import Member, assemble
from fuse.checkpoint import open_checkpoint
from fuse.errors import CheckpointError, RecipeError
from fuse.fused import LANGUAGE
from fuse.vocabulary import Vocabulary

FAST = "tokenizer.json"
UNREAD = ("vocab.txt", "*.tiktoken", "*.vocab", "tekken.json")  # tokenizers whose files tell no token's row to us
SAVE = "save it with transformers' fast tokenizer, which writes tokenizer.json"


@dataclass(frozen=True)
class Speaker:
    """An opened folder.

    member: the folder; of a fused folder its language model alone. config: the folder's config.json. settings:
    tokenizer_config.json ({} where there is none).
    """

    member: Member
    config: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def folder(self) -> Path:
        return self.member.folder

    @property
    def fused(self) -> bool:
        return self.config.get("model_type") == "fuse"

    @property
    def vocabulary(self) -> Vocabulary:
        assert self.member.vocabulary is not None  # `open_speaker` refuses a folder without
        return self.member.vocabulary

    @property
    def is_fast(self) -> bool:
        return self.vocabulary.source == FAST

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return self.member.language[self.member.text.embedding].shape[0]

    @property
    def width(self) -> int:
        """Numbers in a row of the embedding."""
        return self.member.language[self.member.text.embedding].shape[1]

    @property
    def head_rows(self) -> int | None:
        """Rows of the head; None where it is the embedding."""
        return None if self.member.is_tied else self.member.language[self.member.text.head].shape[0]


def open_speakers(locations: Sequence[str], base: str | None = None) -> list[Speaker]:
    """Every folder or hub id, in order, and behind them the base where one is given.

    Raises RecipeError for fewer than two different folders, and what `open_speaker` raises.
    """
    given = [*locations, *([base] if base is not None else [])]
    if len(locations) < 2:
        raise RecipeError("tokens are compared between two folders or more", hint="fuse inspect tokens A B")
    where = [str(Path(one).resolve()) if Path(one).exists() else one for one in given]
    twice = next((one for one, count in Counter(where).items() if count > 1), None)
    if twice is not None:
        raise RecipeError(f"{given[where.index(twice)]!r} is given twice")
    return [open_speaker(name, one) for name, one in zip(names_of(where), given, strict=True)]


def names_of(places: Sequence[str]) -> list[str]:
    """The last piece of each path, with as many before it as it takes to tell it from the others."""
    pieces = [tuple(piece for piece in place.split("/") if piece) or (place,) for place in places]
    found = []
    for own in pieces:
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in pieces) > 1:
            count += 1
        found.append("/".join(own[-count:]))
    return found


def open_speaker(name: str, location: str) -> Speaker:
    """Open a folder or hub id: configs, tokenizer, safetensors headers; no weights.

    Of a fused folder the member is its language model. Raises what `open_member` raises, and CheckpointError where
    there is no tokenizer, or none that fuse reads.
    """
    checkpoint = open_checkpoint(name, location, revision=None, relative_to=None)
    config = checkpoint.config
    if config.get("model_type") == "fuse":
        text = config.get("text_config")
        if not isinstance(text, Mapping):
            raise CheckpointError("config.json: text_config is missing", where=checkpoint.folder)
        tensors = {k.removeprefix(LANGUAGE): e for k, e in checkpoint.tensors.items() if k.startswith(LANGUAGE)}
        checkpoint = replace(checkpoint, config=text, tensors=tensors)
    member = assemble(checkpoint)
    if member.vocabulary is None:
        raise _no_tokenizer(member.folder)
    file = member.folder / "tokenizer_config.json"
    return Speaker(member, config, strict_json.read_object(file) if file.is_file() else {})


def _no_tokenizer(folder: Path) -> CheckpointError:
    other = next((file.name for pattern in UNREAD for file in sorted(folder.glob(pattern))), None)
    if other is None:
        return CheckpointError(f"holds no {FAST}", where=folder, hint="copy the tokenizer's files from its repository")
    return CheckpointError(f"holds {other} and no {FAST}, and only the code of the model reads it", where=folder,
                           hint=SAVE)  # fmt: skip
