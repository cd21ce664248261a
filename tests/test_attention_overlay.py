"""Attention of an answer over visual tokens, and the picture of it."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from fuse.align.attention.answer import spread
from fuse.branches.budget import share
from fuse.branches.cells import kept_cells
from fuse.branches.places import canvas, grid_boxes
from fuse.branches.select import keep_tokens
from fuse.errors import MachineError, RecipeError
from fuse.report.attention import answer_attention, attention_shares
from fuse.report.overlay import MAGMA, colours, heat, overlay, top_of_scale
from fuse.report.text import elide, font_for, wrap
from fuse.report.watch import watching
from tests import tiny_text, tiny_vlm

PROMPT, STEPS, LAYERS, HEADS = 9, 3, 2, 4


def attentions(seed: int = 0) -> list[list[np.ndarray]]:
    """What `generate` gives: the prompt's square first, then one row for each further token; rows sum to 1."""
    random = np.random.default_rng(seed)
    shapes = [(1, HEADS, PROMPT, PROMPT), *((1, HEADS, 1, PROMPT + step) for step in range(1, STEPS))]
    rows = [[random.random(shape) for _ in range(LAYERS)] for shape in shapes]
    return [[layer / layer.sum(-1, keepdims=True) for layer in step] for step in rows]


def test_the_mean_over_tokens_layers_and_heads() -> None:
    given_ = attentions()
    wanted = np.mean(
        [layer[0, head, -1, :PROMPT] for step in given_ for layer in step for head in range(HEADS)], axis=0
    )
    np.testing.assert_allclose(answer_attention(given_, PROMPT), wanted, atol=1e-15)
    as_torch = [[torch.from_numpy(layer).bfloat16() for layer in step] for step in given_]
    np.testing.assert_allclose(answer_attention(as_torch, PROMPT), wanted, rtol=2**-8)


def test_windows_static_caches_and_layers_without_attention() -> None:
    plain = attentions()
    static = [[np.pad(layer, [(0, 0)] * 3 + [(0, 5)], constant_values=7) for layer in step] for step in plain]
    np.testing.assert_array_equal(answer_attention(static, PROMPT), answer_attention(plain, PROMPT))
    np.testing.assert_allclose(
        answer_attention([[*step, None] for step in plain], PROMPT), answer_attention(plain, PROMPT)
    )
    window = [[layer[..., -4:] for layer in step] for step in plain]
    found = answer_attention(window, PROMPT)
    wanted = np.zeros(PROMPT)
    for step, layers in enumerate(plain):
        for place in range(PROMPT + step - 4, PROMPT):
            wanted[place] += np.mean([layer[0, :, -1, place] for layer in layers]) / STEPS
    np.testing.assert_allclose(found, wanted)


def test_no_attentions_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^no attentions: the model must run with attn_implementation eager and"):
        answer_attention([[None, None]], 3)


def test_shares_of_two_branches() -> None:
    paid = answer_attention(attentions(), PROMPT)
    shares = attention_shares(paid, [1, 90, 90, 90, 90, 91, 91, 5, 90], {"a": 90, "b": 91, "c": 92})
    assert shares == {
        "a": pytest.approx(paid[[1, 2, 3, 4, 8]].sum()), "b": pytest.approx(paid[[5, 6]].sum()), "c": 0,
    }  # fmt: skip


@pytest.mark.parametrize("prune", ["pool", "norm"])
def test_budgets_and_drawn_attention_agree(prune: str) -> None:
    runs, shares = (12,), share((12,), 5)
    tokens = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    _, index = keep_tokens(prune, tokens, runs, shares, grid=(1, 3, 4))
    cells = kept_cells(prune, runs, shares, index.tolist(), (1, 3, 4))
    paid = answer_attention(attentions(), PROMPT)[1:6]
    parts, boxes = spread(paid, cells, grid_boxes(3, 4))
    assert parts.sum() == pytest.approx(paid.sum())
    drawn = canvas(parts, boxes, (4, 3), longest=4)
    assert drawn.shape == (3, 4)
    if prune == "norm":
        np.testing.assert_allclose(drawn.ravel()[index], paid)
        assert np.flatnonzero(drawn).tolist() == index.tolist()
        return
    wanted = sum(part * np.isin(np.arange(12), cell) / len(cell) for part, cell in zip(paid, cells, strict=True))
    np.testing.assert_allclose(drawn.ravel(), wanted)
    assert (drawn > 0).all()


def test_what_generate_gives_is_read_right() -> None:
    model = tiny_text.build("llama", attn_implementation="eager")
    ids = torch.tensor([[1, 7, 9, 9, 9, 9, 30, 41]])
    out = model.generate(
        ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )  # fmt: skip
    with torch.no_grad():
        whole = model(out.sequences[:, :-1], output_attentions=True).attentions
    wanted = np.mean([layer[0, :, row, :8].double().numpy().mean(0) for layer in whole for row in (7, 8, 9)], axis=0)
    np.testing.assert_allclose(answer_attention(out.attentions, 8), wanted, atol=1e-6)


# The picture


def picture(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), 200, dtype=np.uint8))


def test_colours_are_the_table_and_lighter_with_value() -> None:
    np.testing.assert_allclose(colours(np.linspace(0, 1, 9)), MAGMA)
    np.testing.assert_allclose(colours(np.array([-1, 2.0])), MAGMA[[0, -1]])
    light = colours(np.linspace(0, 1, 200)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()


def test_heat_lies_where_its_cell_is() -> None:
    values = np.zeros((4, 6))
    values[1, 4] = 1
    found = np.asarray(heat(picture(), values)).astype(int).sum(-1)
    assert np.unravel_index(found.argmax(), found.shape) in {(y, x) for y in range(10, 20) for x in range(40, 50)}
    assert found[0, 0] == found[39, 59] == found.min()
    whole = np.asarray(heat(picture(), np.ones((3, 3))))
    np.testing.assert_array_equal(whole, np.broadcast_to(np.round(0.4 * 200 + 0.6 * MAGMA[-1]), whole.shape))


def test_top_of_scale_passes_over_one_hot_token() -> None:
    values = np.ones((40, 40))
    values[3, 3] = 1000
    assert top_of_scale(values) == 1
    assert top_of_scale(np.zeros((2, 2))) == 1
    assert top_of_scale(np.array([[0, 0.25]])) == 0.25


@pytest.mark.parametrize("branches", [0, 1, 2, 3, 5])
def test_a_picture_of_every_number_of_branches(tmp_path: Path, branches: int) -> None:
    maps = {f"branch-{i}": np.eye(3 + i) for i in range(branches)}
    path = tmp_path / "look.png"
    overlay(picture(), maps, path, "An answer. " * 30, question="What?", shares={"branch-0": 0.2, "tiles": 0.1})
    with Image.open(path) as page:
        assert page.mode == "RGB" and page.text == {"question": "What?", "answer": "An answer. " * 30}
        columns = {1: 1, 2: 2, 3: 3, 4: 2, 6: 3}[branches + 1]
        assert page.width == 24 + columns * 444
        pixels = np.asarray(page)
    assert (pixels[24 + 28 + 100, 24:444] == 200).all()  # the image itself
    if branches:
        column, row = 1 % columns, 1 // columns
        panel = pixels[52 + row * 358 : 332 + row * 358, 24 + column * 444 : 444 + column * 444]
        np.testing.assert_array_equal(panel, np.asarray(heat(picture(420, 280), np.eye(3))))


def test_every_panel_has_a_scale_of_its_own(tmp_path: Path) -> None:
    overlay(picture(), {"a": np.full((2, 2), 1.0), "b": np.full((2, 2), 0.5)}, tmp_path / "look.png", "Yes.")
    with Image.open(tmp_path / "look.png") as page:
        first, second = np.asarray(page)[52 + 140, [24 + 444 + 200, 24 + 888 + 200]].astype(int)
    assert first.tolist() == second.tolist() == np.round(0.4 * 200 + 0.6 * MAGMA[-1]).tolist()


def test_the_same_picture_every_time(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        overlay(picture(), {"a": np.eye(4)}, tmp_path / name, "Yes.")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_long_answer_is_cut_and_says_so(tmp_path: Path) -> None:
    heights = []
    for lines in (40, 41, 500):
        overlay(picture(), {}, tmp_path / "look.png", "\n".join(["word"] * lines))
        with Image.open(tmp_path / "look.png") as page:
            heights.append(page.height)
            assert page.text["answer"].count("word") == lines
    assert heights[1] == heights[2] == heights[0] + 24


@pytest.mark.parametrize(("name", "message"), [
    ("look.jpg", "look.jpg: the attention picture is a PNG (name it look.png)"),
    ("look", "look: the attention picture is a PNG (name it look.png)"),
])  # fmt: skip
def test_only_png(name: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        overlay(picture(), {}, Path(name), "")
    assert str(caught.value) == message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no" / "look.png"
    with pytest.raises(MachineError) as caught:
        overlay(picture(), {}, path, "")
    assert str(caught.value) == f"{path}: cannot be written (No such file or directory)"


@pytest.mark.parametrize("values", [np.zeros(4), np.full((2, 2), np.nan), np.array([[-1.0]])])
def test_maps_must_be_maps(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^branch a: a map is two-dimensional, finite and not negative$"):
        overlay(picture(), {"a": values}, tmp_path / "look.png", "")


# Words


@given(st.text(max_size=200), st.integers(20, 300))
def test_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    font = ImageFont.load_default(10)
    lines = wrap(text, font, width)
    assert lines
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(
        c for c in text if not c.isspace() and unicodedata.category(c)[0] != "C"
    )


def test_wrapping_by_hand() -> None:
    font = ImageFont.load_default(10)
    width = int(font.getlength("two words")) + 1
    assert wrap("two words and\x1b\n\nmore", font, width) == ["two words", "and", "", "more"]
    assert wrap("", font, width) == [""]
    assert "".join(wrap("w" * 40, font, width)) == "w" * 40 and len(wrap("w" * 40, font, width)) > 2


def test_eliding() -> None:
    font = ImageFont.load_default(10)
    assert elide("short\nname", font, 500) == "short name"
    cut = elide("a name much too long for its panel", font, 80)
    assert cut.startswith("a name") and cut.endswith("...") and font.getlength(cut) <= 80
    assert elide("abc", font, 1) == ""


def test_a_font_that_has_the_letters() -> None:
    assert font_for("plain words", 12).getlength("plain words") > 0
    assert font_for("", 12).getlength("x") > 0
    strange = font_for("\U0001f9ff 中文", 12)
    assert strange.getlength("中文") > 0


# Watching


def image_inputs(name: str) -> dict[str, torch.Tensor]:
    """A prompt of 12 tokens, with one picture for some of the tiny models."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 80, (1, 12), generator=random)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in {"llava", "paligemma", "gemma3", "qwen2_vl"}:
        ids[0, 2:6] = 90
        given["pixel_values"] = torch.randn(1, 3, 28, 28, generator=random)
    if name == "qwen2_vl":
        ids[0, 1], ids[0, 6] = 92, 93
        given["pixel_values"] = torch.randn(16, 3 * 2 * 14 * 14, generator=random)
        given["image_grid_thw"] = torch.tensor([[1, 4, 4]])
    if name in {"paligemma", "gemma3", "qwen2_vl"}:
        given["mm_token_type_ids" if name == "qwen2_vl" else "token_type_ids"] = (ids == 90).long()
    return given


@pytest.mark.parametrize(
    "name", [name for name in tiny_vlm.VLM_TYPES if name not in {"blip-2", "instructblip", "mllama"}]
)
def test_watching_keeps_the_rows_that_count(name: str) -> None:
    inputs, how = image_inputs(name), {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    model = tiny_vlm.build(name)
    before = model.get_decoder().config._attn_implementation
    with watching(model.get_decoder()) as attentions:
        watched = model.generate(**inputs, **how)
    assert model.get_decoder().config._attn_implementation == before != "eager"
    assert len(attentions) == 4 and {layer.shape[-2] for step in attentions for layer in step} == {1}
    assert torch.equal(model.generate(**inputs, **how), watched) and len(attentions) == 4
    model.set_attn_implementation("eager")
    full = model.generate(**inputs, **how, output_attentions=True, return_dict_in_generate=True).attentions
    found, wanted = answer_attention(attentions, 12), answer_attention(full, 12)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert wanted.min() > 0


def test_nothing_to_watch() -> None:
    model = tiny_text.build("llama")
    message = r"^no attention weights came from the 2 attention layers of the language model$"
    with pytest.raises(ValueError, match=message), watching(model.get_decoder()):
        pass
    assert model.config._attn_implementation == "sdpa" and not model.model._forward_pre_hooks
