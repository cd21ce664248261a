"""A batch of questions answered by a loaded folder: open ones greedily, those with choices by likelihood."""

from typing import Any

import torch
from torch import Tensor

from fuse.ask import Answerer, pad_of, room, speaker_of
from fuse.errors import CheckpointError, RecipeError
from fuse.evaluate.batches import Batch
from fuse.evaluate.likelihood import answer_logs, scored, to_device
from fuse.evaluate.replies import Reply

MAX_TOKENS = 32


def reply(
    answerer: Answerer, batch: Batch, *, max_tokens: int = MAX_TOKENS, loss: bool = False, norm: str = "token"
) -> list[Reply]:
    """The replies to a batch of `prepare`, in its order.

    An open question is answered greedily in up to max_tokens tokens: the text is that of `fuse.ask.ask`, the entropy
    the mean over the tokens that were said, the end token among them. Of choices the likeliest is taken (the first of
    equals): norm `token` compares the mean log-likelihood of their tokens, since a sum favours short choices, and `sum`
    the sum; the entropy is that of the softmax over these scores. loss: give the first right answer's too, which costs
    another pass for open questions. Raises RecipeError where that answer has no tokens.
    """
    if batch.questions[0].choices:
        return _choose(answerer, batch, loss=loss, norm=norm)
    losses: list[float | None] = [None] * len(batch.questions)
    if loss:
        for question, answers in zip(batch.questions, batch.answers, strict=True):
            if not answers:
                raise RecipeError("answer is missing, so there is no loss", where=question.where)
            if not answers[0]:
                told = f"answer {question.answers[0]!r} has no tokens for {answerer.folder}"
                raise RecipeError(told, where=question.where)
        losses = [-float(_finite(logs, answerer).mean()) for (logs,) in answer_logs(answerer, batch)]
    said = _said(answerer, batch, max_tokens)
    return [
        Reply(question.key, text, entropy, lost)
        for question, (text, entropy), lost in zip(batch.questions, said, losses, strict=True)
    ]


def _choose(answerer: Answerer, batch: Batch, *, loss: bool, norm: str) -> list[Reply]:
    replies = []
    for question, logs in zip(batch.questions, answer_logs(answerer, batch), strict=True):
        scores = _finite(torch.tensor([scored(one, norm) for one in logs], dtype=torch.float64), answerer)
        entropy = float(torch.special.entr(scores.softmax(0)).sum())
        choice = question.choices[int((scores == scores.max()).nonzero()[0])]
        lost = -float(logs[question.choices.index(question.answers[0])].mean()) if loss else None
        replies.append(Reply(question.key, choice, entropy, lost))
    return replies


@torch.no_grad()
def _said(answerer: Answerer, batch: Batch, max_tokens: int) -> list[tuple[str, float | None]]:
    """Each question's greedy answer, and the mean entropy in nats of what its tokens were chosen from."""
    from transformers import LogitsProcessorList

    model, steps = answerer.model, []

    def watch(input_ids: Tensor, scores: Tensor) -> Tensor:
        steps.append(torch.special.entr(scores.float().softmax(-1)).sum(-1))
        return scores

    inputs = to_device(batch.inputs, model.device)
    most = room(answerer, inputs["input_ids"].shape[1], max_tokens)
    out = model.generate(
        **inputs, max_new_tokens=most, do_sample=False, num_beams=1, pad_token_id=pad_of(answerer.tokenizer),
        logits_processor=LogitsProcessorList([watch]),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    start = 1 if speaker_of(model).config.is_encoder_decoder else inputs["input_ids"].shape[1]
    words = out[:, start:].cpu()
    entropies = _finite(torch.stack(steps[: words.shape[1]], 1).double().cpu(), answerer)
    lengths = _lengths(words, _ends(model))
    texts = answerer.tokenizer.batch_decode(
        [row[:length] for row, length in zip(words, lengths, strict=True)], skip_special_tokens=True
    )
    return [
        (text.strip(), float(row[:length].mean())) for text, row, length in zip(texts, entropies, lengths, strict=True)
    ]


def _finite(values: Tensor, answerer: Answerer) -> Tensor:
    if not values.isfinite().all():
        raise CheckpointError("its next-token distributions are not finite", where=answerer.folder)
    return values


def _ends(model: Any) -> Tensor:
    """The tokens that end an answer."""
    ends = speaker_of(model).generation_config.eos_token_id
    return torch.tensor([] if ends is None else ends if isinstance(ends, list | tuple) else [ends], dtype=torch.long)


def _lengths(words: Tensor, ends: Tensor) -> list[int]:
    """How many of the words [B, T] each row said: up to its first end token, which counts."""
    over = torch.isin(words, ends).long()
    before = over.cumsum(1) - over  # end tokens before each word
    return (before == 0).sum(1).tolist()
