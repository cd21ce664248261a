"""Going on from a cache, by `generate` and by hand; teacher forcing; what a Trainer passes."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from fuse.errors import RecipeError
from tests.test_fused_model import fused, picture

HOSTS = ["llava", "qwen2_vl", "paligemma", "gemma3"]


def made(host: str) -> tuple[Any, Any]:
    return fused(f"a={host}:1", f"b={host}:2")


def first_turn(ours: Any, seed: int = 1, words: str = "w5 w6") -> Any:
    return ours(images=[picture((60, 40), seed)], text=[f"{ours.image_token} {words}"])


def say(model: Any, batch: Any, tokens: int, **how: Any) -> Any:
    with torch.no_grad():
        return model.generate(
            **batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=2,
            suppress_tokens=model.config.placeholder_ids, return_dict_in_generate=True, output_logits=True, **how,
        )  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("images_again", [True, False])
def test_a_second_turn_on_the_cache_of_the_first(host: str, images_again: bool) -> None:
    """The words and logits are those of the same two turns read without a cache in between."""
    model, ours = made(host)
    batch = first_turn(ours)
    cache = DynamicCache(config=model.get_decoder().config)
    before = say(model, batch, 4, past_key_values=cache)
    more = torch.tensor([[7, 8, 9]])
    ids = torch.cat([before.sequences, more], 1)
    inputs = dict(batch) if images_again else {}
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    after = say(model, inputs, 4, past_key_values=before.past_key_values)
    with torch.no_grad():
        whole = model(
            **{**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)},
            token_type_ids=suffix_blocks(model, batch, ids),
        ).logits[:, -1]
    assert (after.logits[0] - whole).abs().max() < 1e-4


def suffix_blocks(model: Any, batch: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """The blocks of the first prompt alone, for hosts that have any: what came later was read causally."""
    prompt = model.read(**batch)
    block = model._blocks(prompt)
    if block is None:
        return None
    return torch.nn.functional.pad(block, (0, ids.shape[1] - block.shape[1]), value=-1)


def test_a_cache_does_not_go_on_with_images() -> None:
    model, ours = made("llava")
    batch = first_turn(ours)
    before = say(model, batch, 2)
    again = torch.cat([before.sequences, batch["input_ids"]], 1)
    with pytest.raises(RecipeError, match=r"the new part of the conversation holds an image \(branch 'a'\)"):
        model.generate(input_ids=again, past_key_values=before.past_key_values, max_new_tokens=2)


def by_hand(model: Any, batches: list[Any], turns: list[int], steps: int) -> list[list[int]]:
    """Greedy words of several prompts, each with a cache of its own, one step of each in turn."""
    state = []
    with torch.no_grad():
        for batch in batches:
            out = model(**batch, use_cache=True)
            state.append([out, batch["attention_mask"], []])
        for _ in range(steps):
            for i in turns:
                out, mask, words = state[i]
                logits = out.logits[:, -1].clone()
                logits[:, model.config.placeholder_ids] = -torch.inf
                words.append(logits.argmax(-1).tolist())
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                out = model(
                    input_ids=torch.tensor(words[-1])[:, None], attention_mask=mask, past_key_values=out.past_key_values
                )
                state[i] = [out, mask, words]
    return [words for _, _, words in state]


@pytest.mark.parametrize("host", ["qwen2_vl", "llava"])
def test_loops_by_hand_do_not_disturb_each_other(host: str) -> None:
    model, ours = made(host)
    wide = ours(
        images=[[picture((80, 30), 2)], [picture((30, 30), 3)]], text=[f"{ours.image_token} w9", ours.image_token]
    )
    batches = [first_turn(ours), wide]
    alone = [by_hand(model, [batch], [0], 6)[0] for batch in batches]
    assert by_hand(model, batches, [0, 1], 6) == alone


def test_an_answer_that_is_learnt_is_not_seen() -> None:
    """On a host that reads its prompt in both directions, no position sees a later word of the answer."""
    model, ours = made("paligemma")
    batch = first_turn(ours, words="w5 w6 w7 w8")
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, -1] = 20
    with torch.no_grad():
        one, two = model(**batch, labels=labels).logits, model(**other, labels=labels).logits
        seen = model(**batch).logits - model(**other).logits
    assert torch.equal(one[:, :-1], two[:, :-1])
    assert seen[:, :-1].abs().max() > 1e-4, "without labels the whole prompt is one block"


def test_blocks_that_a_caller_gives_count() -> None:
    model, ours = made("paligemma")
    batch = first_turn(ours, words="w5 w6 w7 w8")
    causal = torch.full_like(batch["input_ids"], -1)
    with torch.no_grad():
        assert (model(**batch, token_type_ids=causal).logits - model(**batch).logits).abs().max() > 1e-4


def test_a_trainer_that_accumulates_is_told_the_truth() -> None:
    """transformers' Trainer passes the number of labels of all its batches, and divides by nothing else."""
    model, ours = made("llava")
    batch = first_turn(ours, words="w5 w6 w7")
    labels = batch["input_ids"].masked_fill(batch["input_ids"] >= 96, -100)
    counted = int((labels[:, 1:] != -100).sum())
    with torch.no_grad():
        mean = model(**batch, labels=labels).loss
        part = model(**batch, labels=labels, num_items_in_batch=10 * counted).loss
    assert abs(float(mean) - 10 * float(part)) < 1e-4


def test_inputs_of_a_branch_that_is_not_there() -> None:
    model, ours = made("llava")
    batch = first_turn(ours)
    with pytest.raises(RecipeError, match="there are inputs of branch 'zzz', which the model does not have"):
        model(**batch, **{"branches.zzz.pixel_values": [torch.zeros(1)]})
