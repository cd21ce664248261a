"""A branch at the positions of the first one: by hand, and in prompts that are generated from, batched and continued."""

from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from fuse.errors import RecipeError
from fuse.model.config import FusedConfig
from fuse.model.fused import FusedForConditionalGeneration
from fuse.model.positions import Shared, positions
from tests import tiny_fused
from tests.test_fused_continuing import say, suffix_blocks
from tests.test_fused_model import fused, greedy, own, picture

torch.set_num_threads(1)
SEPARATOR = {"text": "w9 w10", "ids": [9, 10]}
MIXES = {
    "llama": ("llava", "llava_next", "idefics3"),
    "prefix host": ("paligemma", "llava", "llava_next"),
    "block host": ("gemma3", "llava", "llava_next"),
    "short last": ("idefics3", "llava_next", "llava"),  # its last token stands before the end of the span
}


@cache
def made(mix: str, **options: tuple[str, ...]) -> tuple[Any, Any]:
    """Branches a, b, c of a mix. options: branch -> what it has of `shared` and `separator`."""
    known = {"shared": ("positions", "shared"), "separator": ("separator", SEPARATOR)}
    given_ = {name: dict(known[option] for option in some) for name, some in options.items()}
    models = {name: own(kind, seed)[0] for seed, (name, kind) in enumerate(zip("abc", MIXES[mix], strict=True), 1)}
    with TemporaryDirectory() as folder:
        return tiny_fused.fused(models, "a", Path(folder), given_)


def at(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return model._positions(model.read(**batch))


# The rule ------------------------------------------------------------------------------------------------------------


@st.composite
def rows(draw: Any) -> tuple[list[int], list[tuple[str, int]]]:
    """A row's mask, and its parts in order: (kind, length) with kinds pad, text, first, shared, continued."""
    parts = [("pad", draw(st.integers(0, 3))), ("text", draw(st.integers(0, 3)))]
    for _ in range(draw(st.integers(1, 2))):
        parts.append(("first", draw(st.integers(1, 9))))
        for kind in draw(st.lists(st.sampled_from(["shared", "continued"]), max_size=3)):
            parts.append((kind, draw(st.integers(1, 12))))
        parts.append(("text", draw(st.integers(0, 2))))
    mask = []
    for kind, length in parts:
        empty = draw(st.integers(0, length - 1)) if kind in {"first", "shared"} and draw(st.booleans()) else 0
        mask += [0 if kind == "pad" else 1] * (length - empty) + [0] * empty
    return mask, parts


@given(rows())
def test_positions_are_those_of_the_rule(row: tuple[list[int], list[tuple[str, int]]]) -> None:
    """Token i of n at the middle of the i-th of n equal stretches of the first block's span, rounded down."""
    mask, parts = row
    shared, wanted, after, column, first, start, span = [], [], 0, 0, (0, 0), 0, 0
    for kind, length in parts:
        real = sum(mask[column : column + length])
        if kind == "first":
            first, start, span = (column, column + length), after, real
        if kind == "shared":
            shared.append(Shared(1, first, (column, column + length)))
            places = [int(start + Fraction(2 * i + 1, 2) * span / real) for i in range(real)]
        else:
            places = list(range(after, after + real))
            after += real
        waiting = iter(places)
        wanted += [next(waiting) if m else 0 for m in mask[column : column + length]]
        column += length
    both = torch.tensor([[1] * len(mask), mask])
    assert positions("llava", both, [], shared).tolist() == [list(range(len(mask))), wanted]
    assert positions("paligemma", both, [], shared).tolist() == [[n + 1 for n in r] for r in (range(len(mask)), wanted)]


def test_by_hand() -> None:
    #                 text  first  shared of 2  of 3     of 7                 text
    mask = torch.ones(1, 1 + 3 + 2 + 3 + 7 + 1, dtype=torch.long)
    blocks = [Shared(0, (1, 4), (4, 6)), Shared(0, (1, 4), (6, 9)), Shared(0, (1, 4), (9, 16))]
    assert positions("llava", mask, [], blocks).tolist() == [[0, 1, 2, 3, 1, 3, 1, 2, 3, 1, 1, 2, 2, 2, 3, 3, 4]]


# In prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", MIXES)
def test_text_behind_an_image_stands_as_behind_the_first_branch_alone(mix: str) -> None:
    """With separators and markers in the block; two images; the tokens of b and c lie inside the span of a."""
    model, ours = made(mix, b=("shared", "separator"), c=("shared",))
    alone, only = fused(f"a={MIXES[mix][0]}:1")
    text = f"w5 {ours.image_token} w6 {ours.image_token} w7 w8"
    images = [picture((60, 40), 1), picture((30, 50), 2)]
    batch, short = ours(images=images, text=[text]), only(images=images, text=[text])
    found, wanted = at(model, batch)[0], at(alone, short)[0]
    mine = torch.isin(batch["input_ids"][0], torch.tensor([5, 6, 7, 8]))
    its = torch.isin(short["input_ids"][0], torch.tensor([5, 6, 7, 8]))
    assert found[mine].tolist() == wanted[its].tolist()
    assert int(found.max()) == int(wanted.max())
    ids = batch["input_ids"][0].tolist()
    begin, before, behind = ids.index(9), ids.index(5), ids.index(6)
    assert ids[begin : begin + 2] == SEPARATOR["ids"], "the separator stands before b"
    first, others = found[before + 1 : begin], found[begin:behind]
    assert first.tolist() == list(range(int(found[before]) + 1, int(first[-1]) + 1))
    assert set(others.tolist()) <= set(range(int(found[before]) + 1, int(found[behind])))
    assert min(others) <= min(first) + 1, "b and c begin where a does"


def test_equal_blocks_stand_at_equal_positions() -> None:
    with TemporaryDirectory() as folder:
        members = {"a": own("llava", 1)[0], "b": own("llava", 2)[0]}
        model, ours = tiny_fused.fused(members, "a", Path(folder), {"b": {"positions": "shared"}})
    batch = ours(images=[picture((60, 40))], text=["w5 <image> w6"])
    found, ids = at(model, batch)[0], batch["input_ids"][0]
    one, two = (found[ids == n].tolist() for n in model.config.placeholder_ids)
    assert one == two and len(one) == 4


TEXTS = ["{0} w5 w6", "w8 {0} w9 {0} w5 w6 w7", "w5 w6 {0}", "w5 w6 w20"]
IMAGES = [[((60, 40), 1)], [((30, 30), 2), ((40, 60), 3)], [((28, 28), 4)], []]


def batch_of(ours: Any, numbers: range | list[int]) -> Any:
    images = [[picture(size, seed) for size, seed in IMAGES[n]] for n in numbers]
    return ours(images=images, text=[TEXTS[n].format(ours.image_token) for n in numbers])


@pytest.mark.parametrize("mix", MIXES)
def test_batches_caches_and_padding_change_nothing(mix: str) -> None:
    """Also where a prompt ends with an image, so that its last token is not the furthest."""
    model, ours = made(mix, b=("shared", "separator"), c=("shared",))
    together = batch_of(ours, range(4))
    with torch.no_grad():
        logits = model(**together).logits
    words = greedy(model, together, 12, repetition_penalty=1.3)
    uncached = greedy(model, together, 12, repetition_penalty=1.3, use_cache=False)
    assert words.tolist() == uncached.tolist()
    for number in range(4):
        alone = batch_of(ours, [number])
        with torch.no_grad():
            want = model(**alone).logits[0]
        assert (logits[number, -len(want) :] - want).abs().max() < 1e-4
        assert greedy(model, alone, 12, repetition_penalty=1.3)[0].tolist() == words[number].tolist()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("number", [0, 2])
def test_every_step_is_a_forward_pass_without_a_cache(mix: str, number: int) -> None:
    """The logits of each generated word, and of the same words in one pass at positions that go on by one."""
    model, ours = made(mix, b=("shared", "separator"), c=("shared",))
    batch = batch_of(ours, [number])
    said = say(model, batch, 5)
    ids = said.sequences
    whole = {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    prompt, begin = at(model, batch), batch["input_ids"].shape[1]
    assert (prompt[0, -1] < prompt.max()) == (mix == "short last" and number == 2)
    behind = prompt.amax(-1, keepdim=True) + 1 + torch.arange(5)
    with torch.no_grad():
        logits = model(
            **whole, token_type_ids=suffix_blocks(model, batch, ids), position_ids=torch.cat([prompt, behind], -1)
        ).logits[:, begin - 1 : -1]
        counted = model(**whole, token_type_ids=suffix_blocks(model, batch, ids)).logits[:, begin - 1 : -1]
    assert (torch.stack(said.logits, 1) - logits).abs().max() < 1e-4
    assert (logits - counted).abs().max() < 1e-4


@pytest.mark.parametrize("mix", ["llama", "prefix host"])
@pytest.mark.parametrize("number", [0, 2])
def test_going_on_from_a_cache(mix: str, number: int) -> None:
    """A second turn by `generate`, and a step by hand, stand behind the largest position of the prompt."""
    model, ours = made(mix, b=("shared",), c=("shared",))
    batch = batch_of(ours, [number])
    before = say(model, batch, 3, past_key_values=DynamicCache(config=model.get_decoder().config))
    ids = torch.cat([before.sequences, torch.tensor([[7, 8]])], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    after = say(model, inputs, 2, past_key_values=before.past_key_values)
    block = suffix_blocks(model, batch, ids)
    with torch.no_grad():
        whole = model(**{**batch, **inputs}, token_type_ids=block).logits
        out = model(**batch, use_cache=True)
        mask = torch.ones(1, batch["input_ids"].shape[1] + 1, dtype=torch.long)
        step = model(input_ids=before.sequences[:, mask.shape[1] - 1 :][:, :1], attention_mask=mask,
                     past_key_values=out.past_key_values)  # fmt: skip
    assert (after.logits[0] - whole[:, -1]).abs().max() < 1e-4
    assert (step.logits[:, -1] - whole[:, mask.shape[1] - 1]).abs().max() < 1e-4


@pytest.mark.parametrize("number", [0, 2])
def test_going_on_from_a_static_cache(number: int) -> None:
    model, ours = made("llama", b=("shared",))
    batch = batch_of(ours, [number])
    before = say(model, batch, 3, past_key_values=StaticCache(config=model.get_decoder().config, max_cache_len=80))
    ids = torch.cat([before.sequences, torch.tensor([[7, 8]])], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    after = say(model, inputs, 2, past_key_values=before.past_key_values)
    with torch.no_grad():
        whole = model(**{**batch, **inputs}).logits
    assert (after.logits[0] - whole[:, -1]).abs().max() < 1e-4


def test_shared_is_not_continued() -> None:
    model, ours = made("llama", b=("shared",))
    plain, _ = made("llama")
    batch = batch_of(ours, [0])
    with torch.no_grad():
        assert (model(**batch).logits - plain(**batch).logits).abs().max() > 1e-4
        assert torch.equal(model.get_image_features(**batch), plain.get_image_features(**batch))


# Hosts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_a_prompt_that_ends_with_an_image_goes_on_behind_its_grid(model_type: str) -> None:
    """As the member's own positions say when it reads the answer with the prompt; its `generate` goes on otherwise."""
    member, processor = own(model_type, 1)
    model, ours = fused(f"a={model_type}:1")
    text, image = f"w5 w6 {ours.image_token}", picture((90, 60), 3)
    theirs, mine = processor(images=[image], text=[text], return_tensors="pt"), ours(images=[image], text=[text])
    assert mine["input_ids"].shape == theirs["input_ids"].shape
    found, start = say(model, mine, 5), mine["input_ids"].shape[1]
    ids = torch.cat([theirs["input_ids"], found.sequences[:, start:]], 1)
    kinds = torch.nn.functional.pad(theirs["mm_token_type_ids"], (0, 5))
    whole = {**theirs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    with torch.no_grad():
        wanted = member(**whole).logits[:, start - 1 : -1]
    got = torch.stack(found.logits, 1)[..., : wanted.shape[-1]]
    assert (got - wanted).abs().max() < 1e-4


def test_flash_attention_is_refused() -> None:
    model, _ = made("llama", b=("shared",))
    config = FusedConfig(**model.config.to_dict())
    config._attn_implementation_internal = "flash_attention_2"
    told = "flash_attention_2 reads positions that stand twice as several texts, and a branch has positions: shared"
    with pytest.raises(RecipeError, match=told):
        FusedForConditionalGeneration(config)


def test_a_batch_that_does_not_tell_where_blocks_begin() -> None:
    model, ours = made("llama", b=("shared",))
    batch = batch_of(ours, [0])
    del batch["branches.b.edges"]
    with pytest.raises(RecipeError, match="the inputs do not tell where the tokens of branch 'b' begin and end"):
        model(**batch)
    batch["branches.b.edges"] = [torch.tensor([9, 90])]
    with pytest.raises(RecipeError, match="the block of branch 'b' leaves the prompt"):
        model(**batch)
