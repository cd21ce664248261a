"""Several models answering together, against float64 by hand without caches."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from fuse import ask as asking
from fuse.ask import Answerer
from fuse.ensemble import Mean, average, common_tokens, ensemble_ask, generate, scaled
from fuse.errors import CheckpointError, RecipeError
from tests import layouts, tiny_text, tiny_vlm
from tests.cli import fuse_here
from tests.members import perturbed, save_member, save_tokenizer, words

QUESTION = "w5 w9 w17 w30"


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[Answerer]:
    """Three llamas of one vocabulary that give other answers: large weights, so that greedy choices are clear."""
    folder = tmp_path_factory.mktemp("parents")
    model = perturbed(tiny_text.build("llama"), 0, 0.3)
    found = []
    for i, name in enumerate("abc"):
        save_member(perturbed(model, i, 0.4), folder / name)
        found.append(asking.load(folder / name))
    return found


def by_hand(
    models: list[Any], prompt: list[int], weights: list[float], mean: Mean, steps: int, allowed: range
) -> list[int]:
    """Greedy answer from averaged float64 distributions, the whole text run again for each token."""
    answer: list[int] = []
    while len(answer) < steps and (not answer or answer[-1] != 2):
        with torch.no_grad():
            ids = torch.tensor([prompt + answer])
            logits = np.stack([model(ids, use_cache=False).logits[0, -1].double().numpy() for model in models])
        logits = logits[:, allowed.start : allowed.stop]
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        parts = np.array(weights)[:, None]
        mixed = (parts * (probabilities if mean == "probability" else np.log(probabilities))).sum(0)
        answer.append(allowed[int(mixed.argmax())])
    return answer


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("mean", ["probability", "log"])
@pytest.mark.parametrize("weights", [None, [3, 1, 2]])
def test_the_average_by_hand(parents: list[Answerer], members: int, mean: Mean, weights: list[float] | None) -> None:
    chosen = parents[:members]
    weights = weights and weights[:members]
    prompt = chosen[0].tokenizer(QUESTION).input_ids
    ids = by_hand([a.model for a in chosen], prompt, scaled(weights, members), mean, 24, range(64))
    heard: list[str] = []
    answer = ensemble_ask(chosen, QUESTION, (), weights, 24, heard.append, mean=mean)
    assert answer == chosen[0].tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert "".join(heard).strip() == answer


def test_members_differ_and_means_differ(parents: list[Answerer]) -> None:
    """The oracle above would prove little if every member said the same."""
    alone = {asking.ask(parent, QUESTION, max_tokens=24) for parent in parents}
    together = {ensemble_ask(parents[:2], QUESTION, max_tokens=24, mean=mean) for mean in ("probability", "log")}
    assert len(alone) == 3 and not together & alone


def test_with_itself_it_gives_its_own_answer(parents: list[Answerer]) -> None:
    heard: list[str] = []
    own = asking.ask(parents[0], QUESTION, max_tokens=40, say=heard.append)
    assert "".join(heard).strip() == own != ""
    twin = Answerer(parents[0].folder, copy.deepcopy(parents[0].model), parents[0].tokenizer, None)
    for mean in ("probability", "log"):
        assert ensemble_ask([parents[0], twin], QUESTION, weights=[0.9, 0.1], max_tokens=40, mean=mean) == own


def test_weight_zero_is_not_run(parents: list[Answerer]) -> None:
    broken = Answerer(Path("broken"), None, None, None)
    assert ensemble_ask([broken, parents[1]], QUESTION, weights=[0, 2], max_tokens=20) == asking.ask(
        parents[1], QUESTION, max_tokens=20
    )


def run(models: list[Any], **how: Any) -> list[int]:
    inputs = [{"input_ids": torch.tensor([[1, 5, 9]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}] * len(
        models
    )
    settings = {
        "weights": [1 / len(models)] * len(models), "mean": "probability", "allowed": range(64), "stop": {2},
        "max_tokens": 12, "pads": [2] * len(models), **how,
    }  # fmt: skip
    return generate(models, inputs, **settings)


def test_the_answer_ends_at_any_end_token(parents: list[Answerer]) -> None:
    models = [parent.model for parent in parents]
    free = run(models, stop=set())
    assert len(free) == 12
    ends = {free[4], free[7]}
    stopped = run(models, stop=ends)
    assert stopped == free[: next(i for i, token in enumerate(free) if token in ends) + 1]


def test_only_common_tokens_are_said(parents: list[Answerer]) -> None:
    models = [parent.model for parent in parents[:2]]
    free = run(models, stop=set())
    allowed = [token for token in range(64) if token != free[0]]
    assert free[0] not in run(models, stop=set(), allowed=allowed)
    assert run(models, stop=set(), allowed=[*range(64), 64, 900]) == free


def test_a_members_own_processors_come_first(parents: list[Answerer]) -> None:
    models = [copy.deepcopy(parent.model) for parent in parents[:2]]
    free = run(models, stop=set())
    models[1].generation_config.suppress_tokens = [free[0]]
    assert free[0] not in run(models, stop=set(), mean="log")


def test_an_error_of_one_member_ends_all(parents: list[Answerer]) -> None:
    class Broken:
        generation_config = parents[0].model.generation_config

        def generate(self, **_: Any) -> None:
            raise RuntimeError("out of memory")

    for models in ([parents[0].model, Broken()], [Broken(), parents[0].model]):
        with pytest.raises(RuntimeError, match=r"^out of memory$"):
            run(models)
    with pytest.raises(BrokenPipeError):
        run([parent.model for parent in parents], heard=lambda token: (_ for _ in ()).throw(BrokenPipeError()))


def test_models_that_see(tmp_path: Path) -> None:
    """Each member gets the picture through its own processor; another class of model, the same vocabulary."""
    from transformers import CLIPImageProcessor, LlavaNextImageProcessor, LlavaNextProcessor, LlavaProcessor

    size = {"shortest_edge": 28}
    crop = {"height": 28, "width": 28}
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    found = []
    for i, name in enumerate(("llava", "llava_next")):
        folder = save_member(perturbed(tiny_vlm.build(name), i, 0.4), tmp_path / name, words(90), {"<image>": 90})
        tokenizer = AutoTokenizer.from_pretrained(folder)
        how = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        if name == "llava":
            processor = LlavaProcessor(CLIPImageProcessor(size=size, crop_size=crop), tokenizer, **how)
        else:
            images = LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=tiny_vlm.PINPOINTS)
            processor = LlavaNextProcessor(images, tokenizer, **how)
        processor.save_pretrained(folder)
        found.append(asking.load(folder))
    pictures = (tmp_path / "image.png",)
    inputs = [asking.inputs_of(answerer, QUESTION, pictures) for answerer in found]
    assert inputs[0]["input_ids"].shape != inputs[1]["input_ids"].shape
    answer: list[int] = []
    while len(answer) < 10 and (not answer or answer[-1] != 2):
        mixed = np.zeros(91)
        for answerer, given in zip(found, inputs, strict=True):
            tail = torch.tensor([answer], dtype=torch.long)
            whole = {**given, "input_ids": torch.cat([given["input_ids"], tail], 1)}
            whole["attention_mask"] = torch.ones_like(whole["input_ids"])
            with torch.no_grad():
                logits = answerer.model(**whole, use_cache=False).logits[0, -1, :91].double()
            mixed += logits.softmax(0).numpy() / 2
        answer.append(int(mixed.argmax()))
    wanted = found[0].tokenizer.decode(answer, skip_special_tokens=True).strip()
    assert ensemble_ask(found, QUESTION, pictures, max_tokens=10) == wanted
    assert len(set(answer)) > 3 and wanted not in {
        asking.ask(a, QUESTION, images=pictures, max_tokens=10) for a in found
    }


def test_average_by_hand() -> None:
    logits = [torch.tensor([0.0, 1, 3]), torch.tensor([2.0, -1, 0])]
    shares = [np.exp(x.double().numpy()) / np.exp(x.double().numpy()).sum() for x in logits]
    for mean, mixed in (
        ("probability", 0.25 * shares[0] + 0.75 * shares[1]), ("log", shares[0] ** 0.25 * shares[1] ** 0.75),
    ):  # fmt: skip
        found = average(logits, [0.25, 0.75], mean).softmax(0).numpy()
        np.testing.assert_allclose(found, mixed / mixed.sum(), atol=1e-12)
    veto = [torch.tensor([0.0, -torch.inf]), torch.tensor([0.0, 9])]
    assert average(veto, [0.5, 0.5], "log")[1] == -torch.inf
    assert average(veto, [0.5, 0.5], "probability").argmax() == 0
    assert average([veto[1], veto[1]], [0.5, 0.5], "probability").argmax() == 1


# Refusals


@pytest.mark.parametrize(("weights", "members", "message"), [
    (None, 1, "an ensemble needs at least two models (fuse ask answers with one)"),
    ([1], 2, "1 weights for 2 models"),
    ([1, -1], 2, "weights [1.0, -1.0] must be finite, at least 0 and not all 0"),
    ([0, 0], 2, "weights [0.0, 0.0] must be finite, at least 0 and not all 0"),
    ([1, float("nan")], 2, "weights [1.0, nan] must be finite, at least 0 and not all 0"),
    ([1, float("inf")], 2, "weights [1.0, inf] must be finite, at least 0 and not all 0"),
])  # fmt: skip
def test_wrong_weights(weights: list[float] | None, members: int, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        scaled(weights, members)
    assert str(caught.value) == message


def tokenizer_at(folder: Path, tokens: list[str], added: dict[str, int] | None = None) -> Any:
    save_tokenizer(folder, tokens, added)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("tokens", "message"), [
    ([*words(9)[:7], "x", "y"], "token 7 is 'x' here and 'w7' there"),
    (words(8), "token 8 is nothing here and 'w8' there"),
    (words(10), "token 9 is 'w9' here and nothing there"),
])  # fmt: skip
def test_other_vocabularies(tmp_path: Path, tokens: list[str], message: str) -> None:
    tokenizers = [tokenizer_at(tmp_path / "a", words(9)), tokenizer_at(tmp_path / "b", tokens)]
    with pytest.raises(CheckpointError) as caught:
        common_tokens(tokenizers, [Path("a"), Path("b")])
    assert str(caught.value) == (
        f"b: its tokenizer differs from that of a: {message} (an ensemble needs members with the same vocabulary)"
    )


def test_other_added_tokens_are_left_out(tmp_path: Path) -> None:
    first = tokenizer_at(tmp_path / "a", words(9), {"<image>": 9, "<pad>": 10})
    second = tokenizer_at(tmp_path / "b", words(9), {"<tile>": 9, "<pad>": 10, "<row>": 11})
    assert common_tokens([first, second], [Path("a"), Path("b")]) == [*range(9), 10]
    assert common_tokens([first, first], [Path("a"), Path("b")]) == list(range(11))


def test_an_end_that_others_lack(tmp_path: Path, parents: list[Answerer]) -> None:
    folder = tmp_path / "b"
    save_tokenizer(folder, words(64), {"<|end|>": 64})
    tokenizer = AutoTokenizer.from_pretrained(folder, eos_token="<|end|>")
    model = copy.deepcopy(parents[1].model)
    model.generation_config.eos_token_id = [64]
    with pytest.raises(CheckpointError) as caught:
        ensemble_ask([parents[0], Answerer(folder, model, tokenizer, None)], QUESTION)
    assert str(caught.value) == (
        f"{folder}: it ends its answers with '<|end|>', which other members do not have"
        " (an ensemble needs members with the same vocabulary)"
    )


def test_questions_that_no_member_can_take(parents: list[Answerer]) -> None:
    with pytest.raises(RecipeError) as caught:
        ensemble_ask(parents, "")
    assert str(caught.value) == f"{parents[0].folder}: the question '' has no tokens"
    with pytest.raises(RecipeError) as caught:
        ensemble_ask(parents, QUESTION, (Path("x.png"),))
    assert str(caught.value) == f"{parents[0].folder}: no image processor in this folder; ask it without --image"


def test_members_that_only_their_authors_code_loads_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any model is loaded, at the member's line."""
    monkeypatch.setattr(asking, "load", None)
    save_member(tiny_text.build("llama"), tmp_path / "a")
    alone = "leave it out; a recipe with `output: {model: fuse}` makes a folder that answers alone"
    convert = "it has the layout of its authors' code; convert it to transformers' internvl first"
    for kind, model_type, hint in (
        ("mgm", "mgm", alone), ("slime", "llava_llama", alone), ("internvl", "internvl_chat", convert)
    ):  # fmt: skip
        layouts.build_original(kind, tmp_path / kind)
        (tmp_path / "r.yaml").write_text(
            f"members:\n  a: a\n  {kind}: {kind}\nlanguage: {{method: linear, weights: 1}}\nvision: [{kind}]\n"
        )
        ran = fuse_here("ask", tmp_path / "r.yaml", "w5", "--ensemble")
        assert (ran.code, ran.out, ran.err) == (
            2, "", f"fuse: r.yaml:3:3: members.{kind}: an ensemble needs members that transformers loads, and {kind} has "
            f"the original layout of {model_type} ({hint})\n",
        )  # fmt: skip
