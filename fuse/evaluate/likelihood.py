"""How likely a model finds an answer that it is given, token by token.

Answers stand behind their prompts, and the model reads both in one pass, through the first step of its own `generate`:
so positions, masks and images are those of generation, whatever the class. Likelihoods are those of the model itself,
over its whole vocabulary and before the settings of a folder's generation (penalties, suppressed tokens) touch them.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from fuse.ask import Answerer, pad_of, speaker_of
from fuse.evaluate.batches import Batch, Row, beginnings, joined

PREFIX = frozenset({"paligemma"})  # the prompt attends in both directions, the answer does not
NORMS = ("token", "sum")


def scored(logs: Tensor, norm: str) -> float:
    """A choice's score from its tokens' log-likelihoods [n], in nats: the mean (norm `token`) or the sum (`sum`)."""
    return float(logs.mean() if norm == "token" else logs.sum())


def answer_logs(answerer: Answerer, batch: Batch) -> list[list[Tensor]]:
    """For each question and each of its answers, the log-likelihood in nats of every token: float64 [n], on the CPU."""
    return [[logs for logs, _ in some] for some in answer_tokens(answerer, batch)]


@torch.no_grad()
def answer_tokens(answerer: Answerer, batch: Batch) -> list[list[tuple[Tensor, Tensor]]]:
    """For each question and each of its answers, two rows over its tokens, on the CPU.

    The log-likelihood in nats, float64 [n], and whether no token is likelier there, bool [n]. One pass
    over one row for each beginning that answers share: four choices of one token each cost one row.
    """
    places = [(number, begin) for number, some in enumerate(batch.answers) for begin in beginnings(some)]
    row_of = {place: row for row, place in enumerate(places)}
    tails = [begin for _, begin in places]
    # behind a shorter answer stands a word that nobody before it sees
    ends = [next(ids[-1] for ids in batch.answers[number] if ids[:-1] == begin) for number, begin in places]
    logits = _logits(answerer, [batch.rows[number] for number, _ in places], tails, ends, batch.fill)
    whole = [row.double().logsumexp(-1) for row in logits]
    found: list[list[tuple[Tensor, Tensor]]] = []
    for number, some in enumerate(batch.answers):
        answers = []
        for ids in some:
            row = row_of[number, ids[:-1]]
            mine = logits[row][torch.arange(len(ids)), list(ids)]
            logs = mine.double() - whole[row][: len(ids)]
            answers.append((logs.cpu(), (mine == logits[row][: len(ids)].amax(-1)).cpu()))
        found.append(answers)
    return found


def _logits(answerer: Answerer, rows: list[Row], tails: list[tuple[int, ...]], ends: list[int], fill: int) -> Tensor:
    """The logits [R, T + 1, V] at the prompt's last token and at each of the T tokens of the longest tail."""
    model, most = answerer.model, max(map(len, tails))
    words = torch.tensor([[*tail, *[end] * (most - len(tail))] for tail, end in zip(tails, ends, strict=True)])
    words = words.reshape(len(rows), most).long()
    inputs = joined(rows, fill)
    if speaker_of(model).config.is_encoder_decoder:
        first = speaker_of(model).generation_config.decoder_start_token_id
        start = speaker_of(model).config.decoder_start_token_id if first is None else first
        inputs["decoder_input_ids"] = torch.cat([torch.full((len(rows), 1), start), words], 1)
    else:
        inputs = _behind(inputs, words, model.config)
    inputs = to_device(inputs, model.device)
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        if not kept:
            kept.append(out.logits[:, -(most + 1) :])

    speaker = speaker_of(model)
    if "logits_to_keep" in inspect.signature(speaker.forward).parameters:
        inputs["logits_to_keep"] = most + 1
    hook = speaker.register_forward_hook(keep)
    try:
        model.generate(
            **inputs, max_new_tokens=1, do_sample=False, num_beams=1, pad_token_id=pad_of(answerer.tokenizer)
        )
    finally:
        hook.remove()
    return kept[0]


def _behind(inputs: dict[str, Any], words: Tensor, config: Any) -> dict[str, Any]:
    """The inputs with words [R, T] behind every prompt, as the model would have said them."""
    new = torch.ones_like(words)
    if config.model_type == "fuse" and config.host_type in PREFIX:
        inputs["token_type_ids"] = torch.where(inputs["attention_mask"] != 0, 0, -1)  # blocks of `fuse.model.masks`
        kinds = -new
    else:
        kinds = new if config.model_type in PREFIX else 0 * new
    behind = {"input_ids": words, "attention_mask": new, "token_type_ids": kinds, "mm_token_type_ids": 0 * new}
    for key, value in behind.items():
        if key in inputs:
            inputs[key] = torch.cat([inputs[key], value.to(inputs[key].dtype)], 1)
    if (seen := inputs.get("cross_attention_mask")) is not None:
        inputs["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].expand(-1, words.shape[1], -1, -1)], 1)
    return inputs


def to_device(inputs: dict[str, Any], device: Any) -> dict[str, Any]:
    """The inputs where the model is; lists of tensors too."""
    return {
        key: [one.to(device) for one in value] if isinstance(value, list) else value.to(device)
        for key, value in inputs.items()
    }
