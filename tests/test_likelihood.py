"""Likelihoods of given answers: against the model fed token by token, and the tokens that an answer is made of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fuse.ask import Answerer, inputs_of, pad_of
from fuse.errors import RecipeError
from fuse.evaluate.answering import reply
from fuse.evaluate.batches import prepare
from fuse.evaluate.continuation import border_of, continuation
from fuse.evaluate.likelihood import answer_logs, scored
from tests.eval_folders import FUSED, NATIVE, TEXT, answerer, questions

CHOICES = ("w7", "w8 w9", "w8 w11 w12", "w30")


def forced(folder: Answerer, question: Any, ids: tuple[int, ...]) -> list[float]:
    """Float64 log-likelihoods of an answer whose tokens are forced one after another in plain generation."""
    found: list[float] = []
    inputs = dict(inputs_of(folder, question.text, question.images))
    inputs.pop("labels", None)

    def force(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        values, want = scores[0].double().numpy(), ids[len(found)]
        found.append(float(values[want] - values.max() - np.log(np.exp(values - values.max()).sum())))
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([want]), 0)

    with torch.no_grad():
        folder.model.generate(
            **inputs, max_new_tokens=len(ids), min_new_tokens=0, do_sample=False, num_beams=1,
            pad_token_id=pad_of(folder.tokenizer), logits_processor=tf.LogitsProcessorList([force]),
            **({"suppress_tokens": None} if hasattr(folder.model.config, "branches") else {}),
        )  # fmt: skip
    return found


@pytest.mark.parametrize("kind", [*TEXT, *NATIVE, *FUSED])
def test_one_pass_gives_what_forcing_token_by_token_gives(kind: str, tmp_path: Path) -> None:
    folder, asked = answerer(kind), questions(kind, tmp_path, 5, CHOICES)
    seen = 0
    for batch in prepare(folder, asked):
        for question, answers, logs in zip(batch.questions, batch.answers, answer_logs(folder, batch), strict=True):
            for ids, got in zip(answers, logs, strict=True):
                if question.key in "135":
                    want = forced(folder, question, ids)
                    # a fused model never says its placeholders, which are a few of its 100 tokens
                    assert got.tolist() == pytest.approx(want, abs=0.1 if kind in FUSED else 1e-4)
                    seen += 1
    assert seen == 3 * len(CHOICES)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_choice_is_the_likeliest_and_its_entropy_that_of_the_choices(kind: str, tmp_path: Path) -> None:
    folder, asked = answerer(kind), questions(kind, tmp_path, 7, CHOICES)
    for norm in ("token", "sum"):
        found = {r.key: r for b in prepare(folder, asked) for r in reply(folder, b, max_tokens=1, loss=True, norm=norm)}
        for question in asked:
            prompt = inputs_of(folder, question.text, ())["input_ids"][0].tolist()
            logs = []
            for choice in CHOICES:
                ids = folder.tokenizer(choice, add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    logits = folder.model(torch.tensor([prompt + ids])).logits[0].double().numpy()
                p = logits - logits.max(-1, keepdims=True)
                p = p - np.log(np.exp(p).sum(-1, keepdims=True))
                logs.append(np.array([p[len(prompt) - 1 + i, token] for i, token in enumerate(ids)]))
            values = np.array([one.mean() if norm == "token" else one.sum() for one in logs])
            p = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
            one = found[question.key]
            assert one.text == CHOICES[int(values.argmax())]
            assert one.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)
            assert one.loss == pytest.approx(-logs[CHOICES.index(question.answers[0])].mean(), abs=1e-5)


def test_norms() -> None:
    logs = torch.tensor([-1.0, -2.0, -6.0], dtype=torch.float64)
    assert (scored(logs, "token"), scored(logs, "sum")) == (-3.0, -9.0)


def test_choices_of_one_token_cost_one_row(tmp_path: Path) -> None:
    folder, asked = answerer("llava"), questions("llava", tmp_path, 1, ("w5", "w6", "w7", "w8"))
    rows: list[int] = []
    hook = folder.model.register_forward_hook(lambda _m, _a, out: rows.append(out.logits.shape[0]))
    (batch,) = prepare(folder, asked)
    reply(folder, batch)
    hook.remove()
    assert rows == [1]


def test_an_answer_without_tokens_has_no_loss(tmp_path: Path) -> None:
    folder, asked = answerer("llama"), questions("llama", tmp_path, 1)
    (batch,) = prepare(folder, [replace(asked[0], answers=("\n",))])
    with pytest.raises(RecipeError) as error:
        reply(folder, batch, loss=True)
    assert str(error.value) == f"data.jsonl:1: answer '\\n' has no tokens for {folder.folder}"
    (batch,) = prepare(folder, [replace(asked[0], answers=())])
    with pytest.raises(RecipeError, match="answer is missing, so there is no loss"):
        reply(folder, batch, loss=True)


def bpe(chat: str = "") -> Any:
    """A byte-level BPE in which words take the space before them, as GPT-2's and Qwen's do."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    text = ["Colour? Answer: red", "USER: Colour? ASSISTANT: red", "red red cube", " red\nred blue blue\n"] * 50
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(text, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    made = tf.PreTrainedTokenizerFast(tokenizer_object=inner)
    if chat:
        made.chat_template = chat
    return made


def said(prompt: str, answer: str, *, chat: str = "", read: list[int] | None = None) -> list[str]:
    words = bpe(chat)
    model: Any = type("Model", (), {"config": type("Config", (), {"is_encoder_decoder": False, "model_type": "llama"})})
    folder = Answerer(Path("m"), model, words, None)
    read = words(prompt)["input_ids"] if read is None else read
    return words.convert_ids_to_tokens(list(continuation(folder, prompt, read, border_of(folder), answer)))


def test_an_answer_is_tokenised_as_the_model_would_go_on() -> None:
    assert said("Colour? Answer:", "red") == ["Ġred"]  # the space is the first thing to be said
    assert said("Colour?\n", "red") == ["red"]
    assert said("Colour? Answer: ", "red") == ["red"]  # the prompt has said the space, which is not taken back
    assert said("Colour? Answer:", "red cube") == ["Ġred", "Ġcube"]


SPACED = "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else ' ASSISTANT: ' }}{{ m.content }}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
LINES = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
THINKS = LINES.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}")
REFUSES = (
    "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
)


def test_the_border_is_what_the_template_writes_there() -> None:
    assert said("USER: Colour? ASSISTANT:", "red", chat=SPACED) == ["Ġred"]
    assert said("<user>\nColour?\n<assistant>\n", "red", chat=LINES) == ["red"]
    assert said("<user>\nColour?\n<assistant>\n", "red", chat=THINKS) == ["red"]
    assert said("Colour? Answer:", "red", chat=REFUSES) == ["Ġred"]


def test_a_processor_that_ends_the_prompt_itself() -> None:
    """PaliGemma's writes a line end behind the question, which the text given to it does not have."""
    ids = bpe()("Colour?\n")["input_ids"]
    assert said("Colour?", "red", read=ids) == ["red"]


@pytest.mark.parametrize("kind", ["t5", "blip-2 with T5"])
def test_an_encoder_decoder_begins_afresh(kind: str, tmp_path: Path) -> None:
    folder = answerer(kind)
    (batch,) = prepare(folder, questions(kind, tmp_path, 1))
    assert folder.tokenizer.decode(batch.answers[0][0]) == "w6 w50 w9"
