"""Tokenizers, special tokens, chat templates and rows of folders, as one document."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fuse.align.tokens.folder import open_speakers
from fuse.align.tokens.pair import pair_document
from fuse.align.tokens.read import Read
from fuse.align.tokens.rows import align, outcomes
from fuse.align.tokens.verdicts import verdicts

VERSION = 1


def inspect_tokens(locations: Sequence[str], *, base: str | None = None, text: str | None = None) -> dict[str, Any]:
    """The document of `fuse inspect tokens`: numbers, words and lists, ready for JSON.

    locations: folders or hub ids; the first is the host, with which the others are compared. base: one more, which
    counts in what `embeddings` gives. text: one that all tokenizers cut.

    `folders` has an entry each: tokens, rows, special tokens, template, how text is cut. `pairs` compares host and
    other; `embeddings` says what the choices of the recipe give; `verdicts` are sentences. Raises RecipeError,
    CheckpointError and MachineError as `open_speakers` and the readers of each part do.
    """
    speakers = open_speakers(locations, base)
    found = [Read(speaker) for speaker in speakers]
    host, others = found[0], found[1:]
    alignments = [align(host.speaker, other.speaker) for other in others]
    lone = None if base is None else speakers[-1]
    members = [one.speaker for one in others if one.speaker is not lone]
    fits = [s for s, a in zip(speakers[1:], alignments, strict=True) if a.kind != "different" and not a.refused]
    based = lone if lone in fits else None
    joined = [one for one in members if one in fits]
    rows = outcomes(host.speaker, joined, based) if joined else []
    document: dict[str, Any] = {
        "inspect": "tokens",
        "version": VERSION,
        "host": host.speaker.name,
        "base": lone.name if lone else None,
        "folders": [one.document() for one in found],
        "pairs": [pair_document(host, other, how) for other, how in zip(others, alignments, strict=True)],
        "embeddings": {
            "members": [host.speaker.name, *(one.name for one in joined)] if joined else [],
            "base": based.name if based else None,
            "choices": [asdict(one) for one in rows],
        },
    }
    if text is not None:
        from fuse.align.tokens.text import encode

        encoded = encode(speakers, text)
        document["text"] = {
            "letters": len(text),
            "folders": {one.name: asdict(how) for one, how in zip(speakers, encoded, strict=True)},
        }
    return document | {"verdicts": [asdict(one) for one in verdicts(document)]}
