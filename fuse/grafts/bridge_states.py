"""Paired states of two language models that read the same texts, at tokens that end at the same character."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fuse.errors import CheckpointError
from fuse.grafts.slots import slots_of
from fuse.memory import MOST_PAIRS

LONGEST = 512  # tokens of a text


@dataclass(frozen=True)
class Pairs:
    """Tokens of two tokenizers that end at the same character of the same text.

    source, target: for each text the token ids of either. places: for each text (index in source, index in target) of
    every pair. text: [n] the text of each pair, texts in order. A text's first token is in no pair: language models
    keep states there that belong to no word (our choice).
    """

    source: list[list[int]]
    target: list[list[int]]
    places: list[list[tuple[int, int]]]

    @property
    def text(self) -> torch.Tensor:
        return torch.tensor([number for number, found in enumerate(self.places) for _ in found])


def pair(source: Any, target: Any, texts: Iterable[str], most: int = MOST_PAIRS) -> Pairs:
    """The pairs of two tokenizers of transformers. Raises CheckpointError for one that does not tell where tokens end.

    Texts are cut after 512 tokens; of more than `most` pairs every second, third ... is kept.
    """
    found = Pairs([], [], [])
    for text in texts:
        ours, theirs = _read(target, text), _read(source, text)
        ends = {end: index for index, end in enumerate(ours[1]) if index and end}
        both = {ends[end]: (index, ends[end]) for index, end in enumerate(theirs[1]) if index and end in ends}
        found.source.append(theirs[0])
        found.target.append(ours[0])
        found.places.append(list(both.values()))
    step = -(-sum(map(len, found.places)) // most) or 1
    return Pairs(found.source, found.target, [places[::step] for places in found.places])


def same_words(source: Any, target: Any, texts: Iterable[str]) -> list[tuple[int, int]]:
    """Tokens of two tokenizers that stand for the same characters somewhere in the texts, spaces in front left out:
    (id of source, id of target), each pair once, in order."""
    found: set[tuple[int, int]] = set()
    for text in texts:
        ours, theirs = _spans(target, text), _spans(source, text)
        found |= {(theirs[span], ours[span]) for span in theirs.keys() & ours.keys()}
    return sorted(found)


def _spans(tokenizer: Any, text: str) -> dict[tuple[int, int], int]:
    """The token of every (begin, end) in a text; spaces and bytes are no words."""
    ids, ends, begins = _offsets(tokenizer, text)
    found: dict[tuple[int, int], int] = {}
    for token, begin, end in zip(ids, begins, ends, strict=True):
        word = text[begin:end].lstrip()
        if word:
            found[end - len(word), end] = token
    return found


def _read(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """(ids, where each token ends; 0 for one that stands for no character)."""
    ids, ends, _ = _offsets(tokenizer, text)
    return ids, ends


def _offsets(tokenizer: Any, text: str) -> tuple[list[int], list[int], list[int]]:
    """(ids, where each ends, where each begins); ends are 0 for one that stands for no character."""
    try:
        read = tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=LONGEST)
    except NotImplementedError:
        hint = "texts can only be paired by tokenizers with tokenizer.json"
        raise CheckpointError("its tokenizer does not tell where tokens end", hint=hint) from None
    begins = [start for start, _ in read["offset_mapping"]]
    ends = [end if end > start else 0 for start, end in read["offset_mapping"]]
    return list(read["input_ids"]), ends, begins


def states(
    model: Any, ids: Sequence[Sequence[int]], kept: Sequence[Sequence[int]], names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The residual stream of a language model, by name, [n, width] in float32 or wider, on the CPU.

    names: `STACK.LAYER.attention` or `.ffn`: before that norm of a block; `final`: before the last norm. ids: of every
    text; kept: at which tokens. An encoder-decoder's decoder is given the text that the encoder reads.
    """
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    two = bool(getattr(model.config, "is_encoder_decoder", False))
    device = model.get_input_embeddings().weight.device
    with torch.no_grad(), _watching(model, names) as seen:
        for text, where in zip(ids, kept, strict=True):
            if not where:
                continue
            given = torch.tensor([list(text)], device=device)
            model(input_ids=given, **({"decoder_input_ids": given} if two else {"use_cache": False}))
            for name in names:
                state = seen[name][0, list(where)].cpu()
                found[name].append(state.to(torch.promote_types(state.dtype, torch.float32)))
    width = model.config.hidden_size
    return {name: torch.cat(parts) if parts else torch.zeros(0, width) for name, parts in found.items()}


@contextmanager
def _watching(model: Any, names: Iterable[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """What norms read in the last pass, by name."""
    slots, seen = slots_of(model), dict[str, torch.Tensor]()

    def keep(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def beside(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            seen[name] = x
            return y

        return beside

    try:
        for name in names:
            if name == "final":
                next(iter(slots.values())).norm(None, "final", keep(name))  # an encoder-decoder's encoder is the first
            else:
                stack, layer, place = name.split(".")
                slots[stack].norm(int(layer), place, keep(name))  # pyright: ignore[reportArgumentType]
        yield seen
    finally:
        for stack in slots.values():
            stack.remove()
