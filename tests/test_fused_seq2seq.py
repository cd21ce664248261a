"""An encoder-decoder (T5) carries a fused model: numbers of its own class, from `fuse merge` to `fuse ask`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5ForConditionalGeneration

from fuse.ask import load
from fuse.errors import CheckpointError, RecipeError
from fuse.evaluate.batches import prepare
from fuse.evaluate.likelihood import answer_logs
from fuse.evaluate.questions import Question
from fuse.model.config import FusedConfig
from fuse.model.fused import FusedForConditionalGeneration
from tests import tiny_encoders, tiny_processors, tiny_text
from tests.cli import fuse_here
from tests.original_branches import difference, picture, seeded

WORDS = 90
KINDS = {  # how a T5 tells its matrices and its scale
    "tied": {},
    "gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "untied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def save_t5(folder: Path, kind: str = "untied", seed: int = 0, **settings: Any) -> T5ForConditionalGeneration:
    """A tiny T5 that reads tokens of `tiny_encoders.HOST` numbers, with a tokenizer; `untied` has a head of its own."""
    told = {
        "num_decoder_layers": 2,
        "vocab_size": WORDS,
        "d_model": tiny_encoders.HOST,
        "eos_token_id": 2,
        **KINDS[kind],
    }
    model: Any = tiny_text.build("t5", **{**told, **settings})
    if kind == "untied":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model._tied_weights_keys = {k: v for k, v in model._tied_weights_keys.items() if k != "lm_head.weight"}
        model.all_tied_weights_keys.pop("lm_head.weight")
    seeded(model, seed).save_pretrained(folder)
    tiny_processors.tokenizer().save_pretrained(folder)
    return model


def recipe(
    root: Path, more: str = "", vision: str = "{name: clip, encoder: clip, projector: projector.safetensors}"
) -> Path:
    text = f"members: {{llm: t5}}\nlanguage: {{method: linear, weights: {{llm: 1}}}}\nvision:\n  - {vision}\n{more}"
    (root / "recipe.yaml").write_text(text)
    return root / "recipe.yaml"


def eyes(root: Path) -> None:
    (root / "clip").mkdir()
    tiny_encoders.write_transformers("clip_vision_model", root / "clip")
    tiny_encoders.write_projector(root, 32)


@pytest.fixture(scope="module", params=list(KINDS))
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The merged folder of each kind, loaded, and the T5 that it was made from."""
    root = tmp_path_factory.mktemp(request.param)
    host = save_t5(root / "t5", request.param)
    eyes(root)
    assert fuse_here("merge", recipe(root), root / "out").code == 0
    return load(root / "out"), host


def inputs_of(answerer: Any, *texts: str, images: int = 1) -> dict[str, Any]:
    pictures = [[picture(60, 40, seed) for _ in range(images)] for seed in range(len(texts))]
    token = f"{answerer.processor.image_token} " * images
    return dict(answerer.processor(images=pictures, text=[token + text for text in texts]))


@torch.no_grad()
def test_logits_are_those_of_the_host(merged: Any) -> None:
    """The encoder reads embeddings with visual tokens in place; the decoder is T5's own."""
    answerer, host = merged
    given = inputs_of(answerer, "w5 w6 w7", "w8")
    prompt = answerer.model.read(**given)
    assert int(prompt.visual.sum()) == 2 * 16
    labels = torch.tensor([[7, 8, 2], [9, 2, -100]])
    found = answerer.model(**given, labels=labels)
    # the host's own table has no rows for placeholders: their logits are left out
    wanted = host(inputs_embeds=prompt.embeds, attention_mask=prompt.attention_mask, labels=labels)
    assert difference(found.logits[..., :WORDS], wanted.logits) <= 1e-6
    words = found.logits[..., :WORDS]
    assert (
        difference(found.loss, torch.nn.functional.cross_entropy(found.logits.flatten(0, 1), labels.flatten())) <= 1e-6
    )
    assert words.abs().max() > 1e-3


@torch.no_grad()
def test_words_alone(merged: Any) -> None:
    answerer, host = merged
    ids = answerer.tokenizer(["w5 w6 w7"], return_tensors="pt")["input_ids"]
    start = torch.tensor([[0, 11]])
    found = answerer.model(input_ids=ids, decoder_input_ids=start).logits[..., :WORDS]
    assert difference(found, host(input_ids=ids, decoder_input_ids=start).logits) <= 1e-6


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"use_cache": False}]
)
@torch.no_grad()
def test_answers_are_those_of_the_host(merged: Any, how: dict[str, Any]) -> None:
    answerer, host = merged
    given = inputs_of(answerer, "w5 w6 w7", "w8")
    prompt = answerer.model.read(**given)
    limits = {"max_new_tokens": 6, "min_new_tokens": 3, "do_sample": False, **how}
    found = answerer.model.generate(**given, **limits)
    wanted = host.generate(
        inputs_embeds=prompt.embeds,
        attention_mask=prompt.attention_mask,
        generation_config=host.generation_config,
        **limits,
    )
    assert torch.equal(found, wanted)


@torch.no_grad()
def test_a_batch_answers_as_its_prompts_do_alone(merged: Any) -> None:
    answerer, _ = merged
    labels = torch.tensor([[7, 8, 2], [9, 10, 2]])
    both = answerer.model(**inputs_of(answerer, "w5 w6 w7", "w8"), labels=labels).logits
    alone = answerer.model(**inputs_of(answerer, "w5 w6 w7"), labels=labels[:1]).logits
    assert difference(both[:1], alone) <= 1e-5


@torch.no_grad()
def test_going_on_from_the_encoder(merged: Any) -> None:
    """A caller's own loop: the encoder once, then the decoder token by token with its cache."""
    answerer, _ = merged
    given = inputs_of(answerer, "w5 w6 w7")
    ids = torch.tensor([[0, 11, 12, 13]])
    whole = answerer.model(**given, decoder_input_ids=ids)
    encoded = (whole.encoder_last_hidden_state,)
    mask = answerer.model.read(**given).attention_mask
    cache = None
    for at in range(ids.shape[1]):
        step = answerer.model(
            encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=ids[:, at : at + 1], past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        cache = step.past_key_values
        assert difference(step.logits[:, 0], whole.logits[:, at]) <= 1e-5


@torch.no_grad()
def test_kept_logits_and_a_tuple(merged: Any) -> None:
    answerer, _ = merged
    given, ids = inputs_of(answerer, "w5"), torch.tensor([[0, 11, 12]])
    whole = answerer.model(**given, decoder_input_ids=ids).logits
    assert torch.equal(answerer.model(**given, decoder_input_ids=ids, logits_to_keep=2).logits, whole[:, 1:])
    kept = torch.tensor([0, 2])
    assert torch.equal(answerer.model(**given, decoder_input_ids=ids, logits_to_keep=kept).logits, whole[:, kept])
    assert torch.equal(answerer.model(**given, decoder_input_ids=ids, return_dict=False)[0], whole)


@torch.no_grad()
def test_a_loss_over_accumulated_batches(merged: Any) -> None:
    answerer, _ = merged
    given, labels = inputs_of(answerer, "w5"), torch.tensor([[7, 8, -100]])
    mean = answerer.model(**given, labels=labels).loss
    assert difference(answerer.model(**given, labels=labels, num_items_in_batch=8).loss, mean * 2 / 8) <= 1e-6


def test_saved_again(merged: Any, tmp_path: Path) -> None:
    answerer, host = merged
    answerer.model.save_pretrained(tmp_path)
    again, report = FusedForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = answerer.model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tied = again.language_model.lm_head.weight is again.language_model.shared.weight
    assert tied == (host.lm_head.weight is host.shared.weight)
    scaled = again.language_model.config.scale_decoder_outputs
    assert scaled == host.config.scale_decoder_outputs == answerer.model.language_model.config.scale_decoder_outputs


@torch.no_grad()
def test_likelihoods_are_those_of_the_decoder(merged: Any, tmp_path: Path) -> None:
    answerer, _ = merged
    picture(60, 40).save(tmp_path / "photo.png")
    question = Question(1, "1", "w5 w6", (tmp_path / "photo.png",), ("w9",), ("w7 w8", "w9"), "all", "choice")
    (batch,) = prepare(answerer, [question])
    (found,) = answer_logs(answerer, batch)
    for ids, logs in zip(batch.answers[0], found, strict=True):
        start = torch.tensor([[0, *ids[:-1]]])
        out = answerer.model(**batch.inputs, decoder_input_ids=start).logits.double().log_softmax(-1)
        assert difference(logs, out[0, torch.arange(len(ids)), list(ids)]) <= 1e-5


def test_asked_and_measured(merged: Any, tmp_path: Path) -> None:
    """`fuse ask`, its attention picture, and `fuse eval`."""
    answerer, _ = merged
    picture(60, 40).save(tmp_path / "photo.png")
    asked = ("ask", answerer.folder, "w5 w6", "--image", tmp_path / "photo.png", "--max-tokens", 4)
    plain = fuse_here(*asked, "--json")
    assert (plain.code, plain.err) == (0, ""), plain
    drawn = fuse_here(*asked, "--json", "--attention", tmp_path / "look.png")
    assert (drawn.code, drawn.err) == (0, ""), drawn
    assert json.loads(drawn.out)["answer"] == json.loads(plain.out)["answer"]
    assert (tmp_path / "look.png").stat().st_size > 1000
    rows = [{"question": "w5", "image": "photo.png", "choices": ["w7", "w9"], "answer": "w7"},
            {"question": "w6", "image": "photo.png", "answer": "w7"}]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = fuse_here("eval", answerer.folder, "--data", tmp_path / "data.jsonl", "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["data"]["questions"] == 2


@torch.no_grad()
def test_attention_is_what_the_decoder_pays_the_encoder(merged: Any) -> None:
    from fuse.report.watch import watching

    answerer, _ = merged
    given = inputs_of(answerer, "w5 w6")
    with watching(answerer.model.get_decoder()) as steps:
        out = answerer.model.generate(**given, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    length = given["input_ids"].shape[1]
    assert [[tuple(t.shape) for t in layers] for layers in steps] == [[(1, 4, 1, length)] * 2] * (out.shape[1] - 1)
    sums = torch.stack([t.sum(-1) for layers in steps for t in layers])
    assert difference(sums, torch.ones_like(sums)) <= 1e-5


def test_images_belong_to_a_prompt(merged: Any) -> None:
    answerer, _ = merged
    given = inputs_of(answerer, "w5")
    images = {key: value for key, value in given.items() if key.startswith("branches.")}
    with pytest.raises(RecipeError) as caught:
        answerer.model(encoder_outputs=(torch.zeros(1, 2, 20),), decoder_input_ids=torch.tensor([[0]]), **images)
    assert str(caught.value) == "images belong to a prompt; this call goes on from encoder_outputs"
    with pytest.raises(RecipeError) as caught:
        answerer.model(**given, position_ids=given["input_ids"], decoder_input_ids=torch.tensor([[0]]))
    assert str(caught.value) == "t5 has no positions that can be given (leave position_ids out)"
    with pytest.raises(ValueError, match="give input_ids, inputs_embeds or encoder_outputs"):
        answerer.model(decoder_input_ids=torch.tensor([[0]]))


def test_shared_positions_are_refused(tmp_path: Path) -> None:
    save_t5(tmp_path / "t5")
    eyes(tmp_path)
    two = "{name: clip, encoder: clip, projector: projector.safetensors}\n"
    more = "  - {name: other, encoder: clip, projector: projector.safetensors, positions: shared}\n"
    ran = fuse_here("plan", recipe(tmp_path, more, vision=two.strip()))
    assert ran.code == 2
    told = "shared has no meaning on t5, which counts how far words stand apart and numbers none (leave it out)"
    assert ran.err.strip().endswith(f"vision.1.positions: {told}")
    entry = {"kind": "encoder", "config": {}}
    branches = [{"name": n, "token": n, "token_id": i, **entry, **p}
                for i, (n, p) in enumerate({"a": {}, "b": {"positions": "shared"}}.items())]  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        FusedConfig(text_config={"model_type": "t5"}, host_type="t5", branches=branches)
    assert str(caught.value) == f"config.json: positions of branch 'b': {told.removesuffix(' (leave it out)')}"


def test_a_host_that_leaves_its_first_token_to_the_class(tmp_path: Path) -> None:
    """No generation_config.json and no decoder_start_token_id: T5 begins with the token that fills up."""
    save_t5(tmp_path / "t5", "tied")
    (tmp_path / "t5" / "generation_config.json").unlink()
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    for key in ("decoder_start_token_id", "scale_decoder_outputs"):
        config.pop(key)
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config))
    eyes(tmp_path)
    assert fuse_here("merge", recipe(tmp_path), tmp_path / "out").code == 0
    made = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert (made["decoder_start_token_id"], made["scale_decoder_outputs"]) == (0, True)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["decoder_start_token_id"] == 0
    answer = fuse_here("ask", tmp_path / "out", "w5", "--max-tokens", 2, "--json")
    assert (answer.code, answer.err) == (0, ""), answer
