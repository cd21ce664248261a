"""One text through several tokenizers: how many tokens each makes of it, and how many are the same."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fuse import strict_json
from fuse.align.tokens.folder import FAST, SAVE, Speaker
from fuse.errors import CheckpointError, MachineError, RecipeError, in_a_line

MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Encoded:
    """A text as one folder's tokenizer cuts it, without special tokens around it.

    tokens: how many. unknown: how many of them are the unknown token. same: share of the host's tokens that this one
    has too, over the same letters under the same id. cut: the same share whatever the ids. first: the first letter
    from which the two differ, in ids or in cuts; None where they do not.
    """

    tokens: int
    unknown: int
    same: float
    cut: float
    first: int | None


def read_text(path: Path) -> str:
    """The text of a file. Raises RecipeError where it is missing, empty, not UTF-8 or longer than 4 MiB."""
    try:
        data = strict_json.read_bytes(path, max_bytes=MAX_BYTES)
        text = data.decode("utf-8")
    except CheckpointError as error:
        raise RecipeError(error.problem, where=path) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 at byte {error.start}", where=path) from None
    if not text.strip():
        raise RecipeError("the file holds no text", where=path)
    return text


def encode(speakers: Sequence[Speaker], text: str) -> list[Encoded]:
    """The text through every folder's tokenizer; the first one is the host.

    Tokens are compared with the letters they stand for: two are the same where they begin and end at the same letter
    and have the same id. A letter of several tokens (bytes) counts each of them. Our choice: ids at the same number
    would all be different behind the first insertion.

    Raises CheckpointError for a folder without tokenizer.json or with one that `tokenizers` does not read.
    """
    found = [_spans(one, text) for one in speakers]
    host = found[0][0]
    return [Encoded(len(spans), unknown, *_shares(host, spans)) for spans, unknown in found]


Span = tuple[int, int, int]  # first letter, the one behind the last, id


def _spans(speaker: Speaker, text: str) -> tuple[list[Span], int]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MachineError("fuse inspect tokens --text cuts with tokenizers, which is not installed",
                           hint="pip install tokenizers") from None  # fmt: skip
    path = speaker.folder / FAST
    if not speaker.is_fast:
        raise CheckpointError(
            f"only {speaker.vocabulary.source} is there, and --text needs {FAST}", where=speaker.folder, hint=SAVE
        )
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except MemoryError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"not a tokenizer: {in_a_line(error)}", where=path) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    made = tokenizer.encode(text, add_special_tokens=False)
    unknown = getattr(tokenizer.model, "unk_token", None)
    spans = [(first, last, row) for (first, last), row in zip(made.offsets, made.ids, strict=True)]
    return spans, sum(token == unknown for token in made.tokens) if unknown is not None else 0


def _shares(host: Sequence[Span], other: Sequence[Span]) -> tuple[float, float, int | None]:
    """Shares of the host's tokens that the other has, with and without ids, and the first letter that differs."""
    if not host:
        return (1.0, 1.0, None) if not other else (0.0, 0.0, 0)
    same = (Counter(host) & Counter(other)).total() / len(host)
    cut = (Counter(one[:2] for one in host) & Counter(one[:2] for one in other)).total() / len(host)
    pairs = zip(host, other, strict=False)  # to the end of the shorter
    first = next((min(one[0], two[0]) for one, two in pairs if one != two), None)
    if first is None and len(host) != len(other):
        first = max(host, other, key=len)[min(len(host), len(other))][0]
    return same, cut, first
