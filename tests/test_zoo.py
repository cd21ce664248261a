"""The zoo's models: what is asked is what was taught, blindness to hue, low-rank deltas, tables that can be made."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from fuse.ask import inputs_of, load, prompt_of
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from tests import zoo_tools  # noqa: F401 - the path of the tools

import evidence  # isort: skip
import zoo_base  # isort: skip
import zoo_files  # isort: skip
import zoo_members  # isort: skip
import zoo_text  # isort: skip
import zoo_tower  # isort: skip
from zoo_base import LlamaForCausalLM  # isort: skip
from zoo_members import LlavaForConditionalGeneration  # isort: skip
from zoo_text import ANSWER, ASK, BEGIN, END, IMAGE, UNSEEN, ids_of  # isort: skip
from zoo_tower import FORM, HUE, SIGN, Sight  # isort: skip
from zoo_world import GREY, VOCABULARY, draw, new_scene, questions  # isort: skip

RECIPES = Path(__file__).parent.parent / "recipes" / "zoo"
MEMBERS = {"hue": HUE, "form": FORM, "sign": SIGN, "stranger": FORM}


def untaught(sight: Sight | None = None) -> Any:
    """A model of the zoo's shape with random weights."""
    base = LlamaForCausalLM(zoo_base.base_config())
    return LlavaForConditionalGeneration(zoo_members.member_config(base, sight)) if sight else base


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the names of the zoo's, before any training."""
    out = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(0)
    for name in ("base", "expert"):
        zoo_files.write(untaught(), out / name, f"# {name}\n")
    for name, sight in MEMBERS.items():
        zoo_files.write(untaught(sight), out / name, f"# {name}\n", sight)
    return out


@pytest.mark.parametrize("name", list(MEMBERS))
def test_a_question_about_a_picture_is_the_ids_that_were_taught(zoo: Path, tmp_path: Path, name: str) -> None:
    sight, random = MEMBERS[name], Random(name)
    scene = new_scene(random)
    picture = draw(scene, random)
    picture.save(tmp_path / "picture.png")
    answerer = load(zoo / name)
    assert answerer.processor is not None
    for one in questions(scene, random)[:8]:
        prompt = [BEGIN, ASK, *[IMAGE] * sight.tokens, *ids_of(one.text), ANSWER]
        inputs = inputs_of(answerer, one.text, (tmp_path / "picture.png",))
        assert inputs["input_ids"].tolist() == [prompt]
    taught, labels = zoo_text.talk([IMAGE] * sight.tokens, scene, [sight.kind], Random(1), 1)
    first = next(i for i, label in enumerate(labels) if label != UNSEEN)
    text = " ".join(VOCABULARY[token] for token in taught[2 + sight.tokens : first - 1])
    assert inputs_of(answerer, text, (tmp_path / "picture.png",))["input_ids"].tolist() == [taught[:first]]


@pytest.mark.parametrize("name", list(MEMBERS))
def test_an_answer_behind_its_question_is_the_ids_that_were_taught(zoo: Path, name: str) -> None:
    """What `fuse eval --loss` and choices by likelihood are taken from."""
    answerer = load(zoo / name)
    prompt = [BEGIN, ASK, IMAGE, *ids_of("where is red ?"), ANSWER]
    told = prompt_of(answerer, "where is red ?", 1, "north")
    assert answerer.tokenizer(told, add_special_tokens=False).input_ids == [*prompt, *ids_of("north"), END]


def test_a_question_in_words_is_the_ids_that_were_taught(zoo: Path) -> None:
    answerer = load(zoo / "base")
    for lesson in (zoo_text.conversation(Random(1), 1), zoo_text.backwards(Random(2))):
        ids, labels = lesson
        first = next(i for i, label in enumerate(labels) if label != UNSEEN)
        text = " ".join(VOCABULARY[token] for token in ids[2 : first - 1])
        assert inputs_of(answerer, text, ())["input_ids"].tolist() == [ids[:first]]


def test_every_word_is_a_token(zoo: Path) -> None:
    tokenizer = load(zoo / "base").tokenizer
    assert [tokenizer.convert_tokens_to_ids(word) for word in VOCABULARY] == list(range(len(VOCABULARY)))
    assert tokenizer("red zebra north", add_special_tokens=False).input_ids == [
        *ids_of("red"),
        len(VOCABULARY),
        *ids_of("north"),
    ]
    assert tokenizer("red").input_ids == [BEGIN, *ids_of("red")]
    assert len(VOCABULARY) + 1 <= zoo_base.ROWS


@pytest.mark.parametrize("sight", [HUE, FORM, SIGN], ids=lambda sight: sight.name)
def test_pixels_are_those_of_the_saved_processor(zoo: Path, sight: Sight) -> None:
    processor = load(zoo / sight.name).processor
    assert processor is not None
    for seed in range(5):
        picture = draw(new_scene(Random(seed)), Random(seed))
        ours = zoo_tower.pixels(picture, sight.side)
        theirs = processor.image_processor(picture, return_tensors="np")["pixel_values"][0]
        assert ours.dtype == np.float32 and ours.shape == (3, sight.side, sight.side)
        away = np.abs(ours - np.asarray(theirs)) * 127.5  # in levels of 255
        assert away.max() < 1.001 and (away > 0.001).mean() < 0.005  # torch's bicubic rounds some pixels the other way


def turned_hue(seen: torch.Tensor) -> torch.Tensor:
    """Other colors of the same luminance: a step across (0.299, 0.587, 0.114) at every pixel. seen: [B, 3, H, W]"""
    grey = torch.tensor(GREY, dtype=seen.dtype)
    step = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1), dtype=seen.dtype)
    along = torch.einsum("bchw,c->bhw", step, grey)[:, None] * grey[:, None, None] / (grey @ grey)
    return seen + step - along


def tokens_of(tower: Any, seen: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return tower(pixel_values=seen).last_hidden_state


def test_grey_only_makes_blind_to_hue() -> None:
    torch.manual_seed(0)
    tower = zoo_tower.CLIPVisionModel(zoo_tower.tower_config(FORM)).double().eval()
    _, seen = zoo_tower.pictures(Random(0), FORM, 4)
    seen = seen.double()
    other = turned_hue(seen)
    assert (tokens_of(tower, seen) - tokens_of(tower, other)).abs().max() > 0.01
    zoo_tower.grey_only(tower)
    torch.testing.assert_close(tokens_of(tower, seen), tokens_of(tower, other), rtol=0, atol=1e-5)
    assert (tokens_of(tower, seen) - tokens_of(tower, seen * 0.5)).abs().max() > 0.01  # luminance is still seen
    before = tokens_of(tower, seen)
    zoo_tower.grey_only(tower)  # a second time nothing happens
    torch.testing.assert_close(tokens_of(tower, seen), before, rtol=0, atol=1e-5)


def test_a_low_rank_delta_folded_in_gives_the_same() -> None:
    torch.manual_seed(0)
    model = untaught().double()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    deltas = zoo_members.with_low_rank(model)
    assert len(deltas) == 4 * 7 and all(name.startswith("model.layers.") for name in deltas)
    for delta in deltas.values():
        delta.double()
    ids = torch.arange(6, 40)[None]
    start = model(ids).logits
    for delta in deltas.values():
        torch.nn.init.normal_(delta.up, std=0.1)
    open_logits = model(ids).logits
    assert (open_logits - start).abs().max() > 1e-3
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{n}.{m}" for n in deltas for m in ("down", "up")
    }
    zoo_members.fold(model, deltas)
    torch.testing.assert_close(model(ids).logits, open_logits, rtol=0, atol=1e-10)
    assert model.state_dict().keys() == before.keys()
    for name, weight in model.state_dict().items():
        inner = name.removesuffix(".weight")
        wanted = before[name] + deltas[inner].up @ deltas[inner].down if inner in deltas else before[name]
        torch.testing.assert_close(weight, wanted)


def test_attention_written_out_is_transformers_own() -> None:
    torch.manual_seed(0)
    model, ids = untaught().eval(), torch.randint(6, 80, (2, 30))
    logits = model(ids).logits
    model.set_attn_implementation("zoo")
    torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-5)


def test_loss_is_that_of_labelled_words() -> None:
    torch.manual_seed(0)
    model = untaught()
    ids, labels = zoo_text.padded([zoo_text.conversation(Random(seed)) for seed in range(3)])
    loss, share = zoo_base.answer_loss(model, labels, input_ids=ids)
    logits = model(ids).logits.detach().double().numpy()[:, :-1]
    wanted = labels.numpy()[:, 1:]
    rows, columns = np.nonzero(wanted != UNSEEN)
    chosen = logits[rows, columns]
    logs = chosen - np.log(np.exp(chosen).sum(-1, keepdims=True))
    said = wanted[rows, columns]
    np.testing.assert_allclose(loss.item(), -logs[np.arange(len(said)), said].mean(), rtol=1e-5)
    words = said != END
    np.testing.assert_allclose(share, (chosen.argmax(-1) == said)[words].mean(), rtol=1e-6)


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [zoo_base.rate_at(step, 1000) for step in range(1, 1001)]
    assert rates[:50] == [step / 50 for step in range(1, 51)]
    assert set(rates[49:600]) == {1.0}
    assert rates[599:] == sorted(rates[599:], reverse=True) and rates[-1] == 0.05


def test_every_row_of_the_tables_can_be_made(zoo: Path, tmp_path: Path) -> None:
    for rows, _ in evidence.TABLES.values():
        for row in rows():
            assert sum(map(bool, (row.parent, row.recipe, row.together))) == 1, row.label
            assert all((zoo / name / "config.json").exists() for name in (row.parent, *row.together) if name)
            if row.recipe:
                file = tmp_path / "row.yaml"
                file.write_text(row.recipe.replace("ZOO", str(zoo)))
                loaded = load_recipe(file)
                plan = make_plan(loaded)
                assert plan.fused is not None and plan.rows, row.label
                assert plan.host.name == (loaded.recipe.vision or [])[0].title, row.label


def test_shipped_recipes_plan(zoo: Path) -> None:
    for recipe in RECIPES.glob("*.yaml"):
        if "grafts:" in recipe.read_text():
            continue  # cut from the base that was trained: tests/test_mks2_zoo.py
        (zoo / recipe.name).write_text(recipe.read_text())
        assert make_plan(load_recipe(zoo / recipe.name)).rows
