"""LION from its recipes to answers: tasks and tags that a question asks for, the aggregator beside a Q-Former."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fuse.ask import ask, load
from fuse.errors import RecipeError
from fuse.grafts.asking import phrased
from fuse.grafts.lion_files import phrase
from tests import recipe_members, tiny_lion
from tests.cli import fuse_here
from tests.original_branches import difference, picture

ROOT = Path(__file__).parent.parent / "recipes"
RECIPES: dict[str, tuple[dict[str, str], dict[str, recipe_members.Donor]]] = {
    "lion": ({"t5": "t5"}, {"lion": tiny_lion.of_checkpoint}),
    "lion_decoder": ({"vlm": "llava"}, {"lion_llava": tiny_lion.of_decoder}),
    "lion_with_lmeye": ({"t5": "t5"}, {"lion": tiny_lion.of_checkpoint, "lmeye": tiny_lion.with_qformer}),
}
HINT = "<|fuse:lion.hint|>"
HOW: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each recipe makes of tiny members, loaded."""
    found = {}
    for name, (kinds, donors) in RECIPES.items():
        folder = tmp_path_factory.mktemp(name)
        text = (ROOT / f"{name}.yaml").read_text()
        with pytest.MonkeyPatch.context() as patch:
            recipe_members.furnish([text], kinds, folder, patch, donors)
        data = {**json.loads(recipe_members.stand_in(text)), "output": {"dtype": "float32"}}
        (folder / "recipe.yaml").write_text(json.dumps(data))
        ran = fuse_here("merge", folder / "recipe.yaml", folder / "out")
        assert (ran.code, ran.err) == (0, ""), ran
        picture(60, 40).save(folder / "photo.png")
        found[name] = load(folder / "out")
    return found


def question(answerer: Any, *texts: str) -> dict[str, Any]:
    token = answerer.processor.image_token
    images = [[picture(60, 40, seed)] for seed in range(len(texts))]
    return dict(answerer.processor(images=images, text=[f"{token} {text}" for text in texts]))


def logits(answerer: Any, given: dict[str, Any], **asked: Any) -> torch.Tensor:
    """Of the first token that is said."""
    start = {"decoder_input_ids": torch.zeros(len(given["input_ids"]), 1, dtype=torch.long)}
    two = answerer.model.config.is_encoder_decoder
    with torch.no_grad():
        return answerer.model(**given, **(start if two else {}), **asked).logits[:, -1]


@pytest.mark.parametrize("recipe", ["lion", "lion_decoder"])
def test_a_question_asks_for_a_task(made: dict[str, Any], recipe: str) -> None:
    answerer = made[recipe]
    given = question(answerer, "w5 w6", "w7")
    (default,) = (graft["config"]["task"] for graft in answerer.model.config.grafts)
    assert default == {"lion": "image", "lion_decoder": "region"}[recipe]
    by_task = {task: logits(answerer, given, grafts={"lion": {"task": task}}) for task in ("image", "region")}
    assert torch.equal(logits(answerer, given), by_task[default])
    assert difference(by_task["image"], by_task["region"]) > 1e-3
    mixed = logits(answerer, given, grafts={"lion": {"task": ["region", "image"]}})
    assert difference(mixed[:1], by_task["region"][:1]) < 1e-5
    assert difference(mixed[1:], by_task["image"][1:]) < 1e-5


@pytest.mark.parametrize("recipe", ["lion", "lion_decoder"])
def test_tags_and_a_task_through_the_command_line(
    made: dict[str, Any], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are written before the question, the hint's embedding is the donor's, the task is the model's."""
    answerer, photo = made[recipe], made[recipe].folder.parent / "photo.png"
    asked = ("ask", answerer.folder, "w5 w6", "--image", photo, "--max-tokens", 4, "--json")
    ran = fuse_here(*asked, "--set", "lion.tags=w7, w8", "--set", "lion.task=region")
    assert (ran.code, ran.err) == (0, ""), ran
    heard: dict[str, Any] = {}
    generate = answerer.model.generate
    monkeypatch.setattr(answerer.model, "generate", lambda **how: heard.update(how) or generate(**how))
    options = {"lion": {"tags": "w7, w8", "task": "region"}}
    said = ask(answerer, "w5 w6", images=(photo,), max_tokens=4, grafts=options)
    assert json.loads(ran.out)["answer"] == said
    assert heard["grafts"] == {"lion": {"task": "region"}}
    plain: dict[str, Any] = {}
    monkeypatch.setattr(answerer.model, "generate", lambda **how: plain.update(how) or generate(**how))
    ask(answerer, phrase("w5 w6", "w7, w8", HINT), images=(photo,), max_tokens=4)
    assert "grafts" not in plain
    assert torch.equal(heard["input_ids"], plain["input_ids"])
    (token,) = (graft["token_ids"]["hint"] for graft in answerer.model.config.grafts)
    at = heard["input_ids"] == token
    assert at.sum() == 1
    inputs = {key: heard[key] for key in heard if key.startswith(("input_", "attention", "branches."))}
    with torch.no_grad():
        prompt = answerer.model.read(**inputs)
    assert torch.equal(prompt.embeds[at][0], answerer.model.grafts["lion"].soft_prompt_hint)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("lion.task=words", "graft 'lion': task cannot be 'words'"),
        ("lion.tag=dog", "graft 'lion' has no option 'tag' (known: task)"),
        ("lion=dog", "--set 'lion=dog' is not GRAFT.KEY=VALUE (such as --set lion.task=region)"),
    ],
)
def test_what_no_question_may_ask(made: dict[str, Any], setting: str, told: str) -> None:
    ran = fuse_here("ask", made["lion"].folder, "w5", "--max-tokens", 2, "--json", "--set", setting)
    assert (ran.code, ran.out, ran.err) == (2, "", f"fuse: {told}\n"), ran


def test_a_graft_that_is_not_heard_is_not_asked_about_tags() -> None:
    graft = {"name": "lion", "kind": "lion", "scale": 0, "tokens": {"hint": 0}}
    with pytest.raises(RecipeError) as error:
        phrased("w5", {"lion": {"tags": "dog"}}, {"grafts": [graft]})
    assert str(error.value) == "graft 'lion' has scale 0, and is not asked about tags (leave the tags out)"
    assert phrased("w5", {}, {"grafts": [graft]}) == ("w5", {})


@torch.no_grad()
def test_the_aggregator_stands_behind_the_q_former(made: dict[str, Any]) -> None:
    """As in the authors' prompt: the Q-Former's tokens, the aggregator's, the words; each what its projector gives."""
    answerer = made["lion_with_lmeye"]
    given = question(answerer, "w5 w6")
    first, second = (branch["token_id"] for branch in answerer.model.config.branches)
    ids = given["input_ids"][0].tolist()
    assert [ids.count(first), ids.count(second)] == [4, 17]
    assert ids.index(second) == ids.index(first) + 4
    prompt = answerer.model.read(**given)
    for name, token in (("qformer", first), ("aggregator", second)):
        branch = answerer.model.branches[name]
        (seen,) = branch({"pixel_values": given[f"branches.{name}.pixel_values"]}, text=[], embed=None, attention=False)
        assert difference(prompt.embeds[0][given["input_ids"][0] == token], seen.tokens) < 1e-6


@torch.no_grad()
def test_two_kinds_of_graft_and_two_branches(made: dict[str, Any]) -> None:
    """Each is heard; a batch says what its prompts say alone; with a cache and without it is the same."""
    answerer = made["lion_with_lmeye"]
    model = answerer.model
    slots = "<|fuse:lmeye_blip2.imgq|>" + 3 * "<|fuse:lmeye_blip2.imgd|>"
    given = question(answerer, f"w5 w6 {slots}", f"w7 {slots}")
    assert (given["attention_mask"] == 0).any()
    loud = logits(answerer, given)
    for name in ("lion", "lmeye_blip2"):
        model.set_scale(name, 0.5)
        assert difference(logits(answerer, given), loud) > 1e-4, name
        model.set_scale(name, 1.0)
    assert torch.equal(logits(answerer, given), loud)
    said = model.generate(**given, **HOW)
    assert torch.equal(said, model.generate(**given, **HOW, use_cache=False))
    for row, text in enumerate((f"w5 w6 {slots}", f"w7 {slots}")):
        token = answerer.processor.image_token
        alone = answerer.processor(images=[[picture(60, 40, row)]], text=[f"{token} {text}"])
        assert torch.equal(model.generate(**alone, **HOW)[0], said[row])


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_and_loaded_again(made: dict[str, Any], recipe: str, tmp_path: Path) -> None:
    answerer = made[recipe]
    answerer.model.save_pretrained(tmp_path)
    again, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )  # fmt: skip
    assert {key: list(found) for key, found in report.items() if found} == {}
    before, after = answerer.model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_task_of_one_adapter(made: dict[str, Any]) -> None:
    """A fold has one adapter; which task it was folded for is not asked again."""
    graft = made["lion"].model.grafts["lion"]
    given = question(made["lion"], "w5")
    graft.config["adapters"] = 1
    try:
        with pytest.raises(RecipeError) as caught:
            logits(made["lion"], given, grafts={"lion": {"task": "image"}})
    finally:
        graft.config["adapters"] = 2
    assert str(caught.value) == "a task was asked for, and these adapters have no router"


def test_two_that_want_other_layers_of_their_host(tmp_path: Path) -> None:
    text = (ROOT / "lion.yaml").read_text()
    kinds, donors = RECIPES["lion"]
    with pytest.MonkeyPatch.context() as patch:
        recipe_members.furnish([text], kinds, tmp_path, patch, donors)
    data = json.loads(recipe_members.stand_in(text))
    (first,) = data["grafts"]
    for scale, code in ((1, 2), (0, 0)):
        data["grafts"] = [
            {**first, "activation": "gelu"},
            {**first, "name": "other", "activation": "host", "scale": scale},
        ]
        (tmp_path / "recipe.yaml").write_text(json.dumps(data))
        ran = fuse_here("plan", tmp_path / "recipe.yaml")
        assert ran.code == code, ran.err
        if code:
            assert "grafts.1: other and lion exclude each other: other needs dense_act_fn of " in ran.err
            assert ran.err.endswith(" itself, and lion needs dense_act_fn gelu\n")
