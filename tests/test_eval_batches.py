"""Questions in batches: what a folder says to many at once is what it says to each alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.ask import ask, inputs_of
from fuse.errors import CheckpointError, RecipeError
from fuse.evaluate.answering import _lengths, reply
from fuse.evaluate.batches import prepare
from fuse.evaluate.questions import Question
from tests.eval_folders import FUSED, NATIVE, TEXT, answerer, questions

KINDS = (*TEXT, *NATIVE, *FUSED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_says_what_ask_says(kind: str, tmp_path: Path) -> None:
    folder, asked = answerer(kind), questions(kind, tmp_path, 6)
    alone = {q.key: ask(folder, q.text, images=q.images, max_tokens=6) for q in asked}
    batches = list(prepare(folder, asked))
    assert sorted(q.key for batch in batches for q in batch.questions) == sorted(alone)
    assert len(batches) < len(asked)
    together = {r.key: r for batch in batches for r in reply(folder, batch, max_tokens=6)}
    assert {key: r.text for key, r in together.items()} == alone
    assert len({r.entropy for r in together.values()}) > 1
    for question in asked:
        (batch,) = prepare(folder, [question])
        (one,) = reply(folder, batch, max_tokens=6)
        assert one.text == alone[question.key]
        assert one.entropy == pytest.approx(together[question.key].entropy, abs=1e-4)


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_vl", "mllama", "fused: block host"])
def test_rows_of_a_batch_are_the_inputs_of_ask_padded_on_the_left(kind: str, tmp_path: Path) -> None:
    folder = answerer(kind)
    for batch in prepare(folder, questions(kind, tmp_path)):
        inputs = batch.inputs
        for row, question in enumerate(batch.questions):
            alone = inputs_of(folder, question.text, question.images)
            length = alone["input_ids"].shape[1]
            assert inputs["input_ids"][row, -length:].tolist() == alone["input_ids"][0].tolist()
            assert (
                inputs["attention_mask"][row].tolist() == [0] * (inputs["input_ids"].shape[1] - length) + [1] * length
            )
        for key in set(inputs) - {"input_ids", "attention_mask", "mm_token_type_ids", "cross_attention_mask"}:
            parts = [inputs_of(folder, q.text, q.images).get(key, []) for q in batch.questions]
            want = [one for part in parts for one in part]
            assert all(torch.equal(a, b) for a, b in zip(inputs[key], want, strict=True)), key


def test_entropy_is_that_of_the_distributions_the_said_tokens_were_taken_from(tmp_path: Path) -> None:
    folder, asked = answerer("llama"), questions("llama", tmp_path, 5)
    said = {r.key: r for batch in prepare(folder, asked) for r in reply(folder, batch, max_tokens=10)}
    for question in asked:
        inputs = inputs_of(folder, question.text, ())
        with torch.no_grad():
            out = folder.model.generate(**inputs, max_new_tokens=10, do_sample=False)
            logits = folder.model(out).logits[0, inputs["input_ids"].shape[1] - 1 : -1].double()
        p = logits.softmax(-1).numpy()
        want = -(p * np.log(p)).sum(-1).mean()
        assert said[question.key].entropy == pytest.approx(want, abs=1e-5)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=5))
def test_a_row_has_said_its_words_up_to_its_first_end_token(rows: list[list[int]]) -> None:
    most = max(map(len, rows))
    words = torch.tensor([row + [0] * (most - len(row)) for row in rows])
    for ends in ([2, 4], [], [0]):
        want = [next((i + 1 for i, w in enumerate(row) if w in ends), most) for row in words.tolist()]
        assert _lengths(words, torch.tensor(ends, dtype=torch.long)) == want


def test_penalties_do_not_see_padding(tmp_path: Path) -> None:
    folder, asked = answerer("llama"), questions("llama", tmp_path, 10)
    config = folder.model.generation_config
    config.repetition_penalty = 1.8
    try:
        alone = {q.key: ask(folder, q.text, max_tokens=10) for q in asked}
        batches = list(prepare(folder, asked))
        said = {r.key: r.text for batch in batches for r in reply(folder, batch, max_tokens=10)}
    finally:
        config.repetition_penalty = None
    assert said == alone
    assert [len(batch.questions) for batch in batches] == [2] * 5


def test_batches_are_full_as_soon_as_they_can_be_and_keep_choices_apart(tmp_path: Path) -> None:
    folder = answerer("llama")
    open_ones, choosing = questions("llama", tmp_path, 5), questions("llama", tmp_path, 4, ("w5 w6", "w7 w8", "w5 w9"))
    choosing = [replace(q, key=f"c{q.key}") for q in choosing]
    mixed = [q for pair in zip(open_ones, [*choosing, None], strict=True) for q in pair if q is not None]
    found = [[q.key for q in batch.questions] for batch in prepare(folder, mixed, batch=3)]
    # two different beginnings, w5 and w7: such a question counts as two rows
    assert found == [["c1", "c2"], ["1", "2", "3"], ["c3", "c4"], ["4", "5"]]


def test_what_a_processor_refuses_is_said_with_the_line() -> None:
    folder = answerer("paligemma")
    question = Question(7, "7", "w5", (), ("w5",), (), "all", "exact", "data.jsonl:7")
    with pytest.raises(RecipeError) as error:
        list(prepare(folder, [question]))
    assert str(error.value) == (
        f"data.jsonl:7: {folder.folder}: its processor refuses it: "
        "`images` are expected as arguments to a `PaliGemmaProcessor` instance."
    )


def test_a_model_that_says_nothing_finite(tmp_path: Path) -> None:
    folder, asked = answerer("gemma2"), questions("gemma2", tmp_path, 2)
    weight = folder.model.get_input_embeddings().weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        (batch,) = prepare(folder, asked)
        with pytest.raises(CheckpointError, match="its next-token distributions are not finite"):
            reply(folder, batch, max_tokens=2)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
