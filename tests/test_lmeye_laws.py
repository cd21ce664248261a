"""What LMEye's network does with prompts: batches, padding, several images, several questions, scales, bad prompts."""

from typing import Any

import pytest
import torch
from transformers import CLIPTextModelWithProjection

from fuse.errors import CheckpointError, RecipeError
from fuse.grafts.graft import Reading
from fuse.grafts.lmeye import LmeyeGraft
from fuse.grafts.lmeye_blip2 import LmeyeBlip2Graft
from fuse.grafts.lmeye_files import shapes
from fuse.grafts.lmeye_text import ClipText
from tests import tiny_lmeye
from tests.tiny_encoders import randomise
from tests.tiny_lmeye import BEGIN, END, FIRST, IMG, IMGD, IMGQ, SECOND

ONE = [1, IMG, 5, 6, IMGD, IMGD, 7]
WIDE = [1, IMG, 9, 8, 4, IMGD, IMGD, 3, 7]


def first(**changes: Any) -> LmeyeGraft:
    return randomise(LmeyeGraft({**FIRST, **changes}), 3)  # pyright: ignore[reportReturnType]


def features(count: int, tokens: int = 1, width: int = 8) -> torch.Tensor:
    return torch.randn(count, tokens, width, generator=torch.Generator().manual_seed(5))


def read(graft: Any, ids: list[list[int]], images: list[int], seen: torch.Tensor) -> Reading:
    told = tiny_lmeye.reading(ids, images, seen, tiny_lmeye.mixer())
    with torch.no_grad():
        graft.read(told)
    return told


def test_the_text_tower_is_transformers() -> None:
    """Words between the ends, with their positions in them: what CLIPTextModelWithProjection gives."""
    whole = tiny_lmeye.clip()
    ids = torch.tensor([[BEGIN, 4, 9, 30, END], [BEGIN, 7, 7, 2, END]])
    text = whole.config.text_config
    text.projection_dim = 8
    told = CLIPTextModelWithProjection(text).eval()
    state = {key: tensor for key, tensor in whole.state_dict().items() if key.startswith(("text_model", "text_proj"))}
    told.load_state_dict(state)
    mine = ClipText(FIRST["clip"], 8)
    table, places = (f"text_model.embeddings.{what}_embedding.weight" for what in ("token", "position"))
    mine.load_state_dict({**state, table: state[table][[BEGIN, END]], places: state[places][[0, 4]]})
    middle = state[table][ids[:, 1:4]] + state[places][1:4]
    with torch.no_grad():
        wanted = told(input_ids=ids)
        torch.testing.assert_close(mine(middle), wanted.last_hidden_state)
        torch.testing.assert_close(mine.text_projection(mine(middle)[:, -1]), wanted.text_embeds)


def test_a_batch_is_its_prompts() -> None:
    """Padding on the left, a prompt without an image, and one with two: each is read as it is read alone."""
    two = [1, IMG, 5, IMG, 6, IMGD, IMGD, IMGD, IMGD]
    prompts, seen = [[0, 0, *ONE], two, [0, 0, 0, 1, 4, 5, 6, 7, 8], WIDE], features(4)
    batch = read(first(), prompts, [0, 1, 1, 3], seen)
    alone = [(ONE, seen[:1], 2), (two, seen[1:3], 0), ([1, 4, 5, 6, 7, 8], seen[:0], 3), (WIDE, seen[3:], 0)]
    for row, (ids, some, gap) in enumerate(alone):
        found = read(first(), [ids], [0] * len(some), some)
        torch.testing.assert_close(batch.embeds[row, gap:], found.embeds[0])


def test_only_slots_change() -> None:
    told = tiny_lmeye.reading([ONE, [1, 2, 3, 4, 5, 6, 7]], [0], features(1), tiny_lmeye.mixer())
    before = told.embeds.clone()
    with torch.no_grad():
        first().read(told)
    slots = told.input_ids == IMGD
    assert torch.equal(told.embeds[~slots], before[~slots])
    assert (told.embeds[slots] != before[slots]).all()


def test_a_prompt_without_slots_costs_no_pass() -> None:
    told = tiny_lmeye.reading([[1, IMG, 5, 6]], [0], features(1), tiny_lmeye.mixer())
    told.run = lambda *_: pytest.fail("a pass")
    embeds = told.embeds
    assert first().read(told) == {}
    assert told.embeds is embeds


def test_scale_is_heard_in_the_answer_alone() -> None:
    """Slots are offset + scale * answer, and the answer does not depend on the scale."""
    graft, offset = first(), None
    rows = []
    for scale in (1.0, 0.5, -2.0):
        graft.scale = scale
        offset = graft.embedding_imgd.weight[0].detach()
        rows.append((read(graft, [ONE], [0], features(1)).embeds[0, 4:6] - offset) / scale)
    torch.testing.assert_close(rows[1], rows[0])
    torch.testing.assert_close(rows[2], rows[0])


def test_the_slots_own_embeddings_do_not_matter() -> None:
    told = tiny_lmeye.reading([ONE], [0], features(1), tiny_lmeye.mixer())
    other = tiny_lmeye.reading([ONE], [0], features(1), tiny_lmeye.mixer())
    other.embeds[other.input_ids == IMGD] += 3
    with torch.no_grad():
        first().read(told)
        first().read(other)
    assert torch.equal(told.embeds, other.embeds)


def test_the_request_hears_the_question_and_the_image() -> None:
    slots = []
    for ids, seen in ((ONE, features(1)), ([1, IMG, 5, 9, IMGD, IMGD, 7], features(1)), (ONE, features(2)[1:])):
        slots.append(read(first(), [ids], [0], seen).embeds[0, 4:6])
    assert not torch.allclose(slots[0], slots[1])
    assert not torch.allclose(slots[0], slots[2])
    behind = read(first(), [[*ONE[:-1], 9]], [0], features(1)).embeds[0, 4:6]
    torch.testing.assert_close(behind, slots[0])  # what stands behind the slots does not


def test_every_question_about_one_image_asks_anew() -> None:
    ids = [1, IMG, 5, IMGD, IMGD, 6, 9, IMGD, IMGD]
    embeds = read(first(), [ids], [0], features(1)).embeds[0]
    assert not torch.allclose(embeds[3:5], embeds[7:9])


def test_the_chosen_branch_is_looked_at() -> None:
    told = tiny_lmeye.reading([ONE], [0], features(1), tiny_lmeye.mixer())
    other = tiny_lmeye.reading([ONE], [0], features(1), tiny_lmeye.mixer())
    other.sights, other.image = {"wide": [], **other.sights}, "eyes"
    with torch.no_grad():
        first().read(told)
        first().read(other)
    assert torch.equal(told.embeds, other.embeds)


def test_the_second_generation_reads_a_batch() -> None:
    graft = randomise(LmeyeBlip2Graft(SECOND), 3)
    ids = [1, IMG, 5, IMGQ, IMGD, IMGD, IMGD, 7]
    seen = features(2, 4, 6)
    batch = read(graft, [[0, 0, *ids], [1, 2, IMG, 4, 9, IMGQ, IMGD, IMGD, IMGD, 7]], [0, 1], seen)
    torch.testing.assert_close(batch.embeds[:1, 2:], read(graft, [ids], [0], seen[:1]).embeds)
    request = graft.instruction_embedding_imgq.weight[0]
    assert torch.equal(batch.embeds[0, 5], request)
    assert torch.equal(batch.embeds[1, 5], request)


def test_the_off_by_one_of_the_official_slice_is_kept() -> None:
    """The first of the request's vectors is heard only through those behind it."""
    graft: Any = randomise(LmeyeBlip2Graft({**SECOND, "clip": {**SECOND["clip"], "layers": 1}}), 3)
    image, asked = features(1, 4, 6), torch.randn(1, 16, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        requests = graft.instruction_blip22clip(asked).unflatten(1, (3, -1))
        last = graft.clip(torch.cat([graft.instruction_linear(image), requests], 1))
        assert last.shape[1] == 1 + 4 + 3 + 1
        wanted = graft.clip.text_projection(torch.stack([last[0, i] for i in (6, 7, 8)]))
        torch.testing.assert_close(graft.interact(image, asked)[0], wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    full = read(first(), [ONE], [0], features(1)).embeds
    half = read(first().to(dtype), [ONE], [0], features(1).to(dtype))
    assert half.embeds.dtype == torch.float32  # the host's
    assert (half.embeds - full).abs().max() < 0.05 * full.abs().max()


def test_gradients_reach_the_network() -> None:
    told, graft = tiny_lmeye.reading([ONE], [0], features(1), tiny_lmeye.mixer()), first()
    graft.read(told)
    told.embeds.sum().backward()
    for name, weight in graft.named_parameters():
        assert (weight.grad is not None and weight.grad.abs().sum() > 0) or name.endswith("k_proj.bias"), name


def test_modules_have_the_shapes_that_the_files_promise() -> None:
    assert {k: tuple(t.shape) for k, t in first().state_dict().items()} == shapes(FIRST)


BAD = [
    ([1, IMG, 5, IMGD, 7], 1, "prompt 1 has slots 1 of imgd (an image has 2 of imgd)"),
    (
        [1, 4, 5, IMGD, IMGD],
        0,
        "prompt 1 has no images, and slots for 1 (the processor writes the slots of every image)",
    ),
    (
        [1, IMG, IMG, IMGD, IMGD],
        2,
        "prompt 1 has 2 images, and slots for 1 (the processor writes the slots of every image)",
    ),
]


@pytest.mark.parametrize(("ids", "images", "told"), BAD)
def test_slots_that_belong_to_no_image(ids: list[int], images: int, told: str) -> None:
    with pytest.raises(RecipeError) as error:
        read(first(), [ids], [0] * images, features(images))
    assert str(error.value) == told


def test_a_request_without_its_slots() -> None:
    graft = randomise(LmeyeBlip2Graft(SECOND), 3)
    with pytest.raises(RecipeError) as error:
        read(graft, [[1, IMG, IMGQ, IMGQ, IMGD, IMGD, IMGD]], [0], features(1, 4, 6))
    assert str(error.value) == (
        "prompt 1 has slots 2 of imgq, 3 of imgd (an image has 1 of imgq, 3 of imgd)"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 16, 8), "LMEye reads 1 x 8 features of an image, and the branch gives 16 x 8"),
        ((1, 1, 6), "LMEye reads 1 x 8 features of an image, and the branch gives 1 x 6"),
    ],
)
def test_features_of_another_shape(shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(first(), [ONE], [0], torch.ones(shape))
    assert str(error.value) == told
