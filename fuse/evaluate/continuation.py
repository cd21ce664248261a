"""The tokens of an answer, as a model would say them behind a prompt.

The rule: what stands between prompt and answer is what the folder's chat template writes there, if that is nothing or
white space; without a template, or with one that does not write answers, it is one space, or nothing where the prompt
as the model reads it ends in white space. Prompt and answer are then tokenised together, and the answer's tokens are
those behind the prompt's. Where the two grow together (a prompt that ends in a space of its own, which the tokenizer
would rather draw into the next word), the answer is tokenised at the beginning of a line, since a model cannot take
back what its prompt says. The end token is no part of an answer. An encoder-decoder begins its answer afresh: it is
tokenised alone.
"""

from typing import Any

from fuse.ask import Answerer, has_template, prompt_of, speaker_of
from fuse.errors import CheckpointError

_PROBE = "Red"


def border_of(answerer: Answerer) -> str | None:
    """The white space that the chat template writes between a prompt and its answer; None where none tells."""
    if not has_template(answerer):
        return None
    prompt = prompt_of(answerer, _PROBE, 0)
    try:
        whole = prompt_of(answerer, _PROBE, 0, answer="Blue")
    except CheckpointError:  # a template may refuse an answer
        return None
    between, found, _ = whole.removeprefix(prompt).partition("Blue")
    if not whole.startswith(prompt) or not found:
        return None
    return between if not between.strip() else ""


def continuation(
    answerer: Answerer, prompt: str, read: list[int], border: str | None, answer: str
) -> tuple[int, ...]:  # fmt: skip
    """The token ids of an answer behind a prompt; () where the tokenizer makes nothing of it.

    prompt: the text given to the processor. read: the ids that it made of it. border: of `border_of`.
    """
    tokenizer = answerer.tokenizer
    if speaker_of(answerer.model).config.is_encoder_decoder:
        return tuple(_ids(tokenizer, answer))
    before = _ids(tokenizer, prompt)
    if before[-1:] != read[-1:]:  # the processor ended the prompt in its own way, as PaliGemma's does
        prompt = tokenizer.decode(read[-1:])
        before = _ids(tokenizer, prompt)
    if border is None:
        border = "" if prompt[-1:].isspace() else " "
    whole = _ids(tokenizer, prompt + border + answer)
    if len(whole) > len(before) and whole[: len(before)] == before:
        return tuple(whole[len(before) :])
    line, begun = _ids(tokenizer, "\n"), _ids(tokenizer, "\n" + answer)
    alone = _ids(tokenizer, answer)
    if line and begun[: len(line)] == line and _text(tokenizer, begun[len(line) :]) == _text(tokenizer, alone):
        return tuple(begun[len(line) :])
    return tuple(alone)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids).strip()
