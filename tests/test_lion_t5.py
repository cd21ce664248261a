"""LION in its own host: the official code's T5 and its whole forward pass, met by a fused model through the import map."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from fuse.branches.branch import Seen
from fuse.branches.lion_aggregator import LionAggregator
from fuse.errors import RecipeError
from fuse.grafts.lion_files import TASKS
from fuse.importers import About, Imported
from fuse.importers.lion import sort_keys
from fuse.model import fused
from fuse.model.config import FusedConfig
from fuse.model.fused import FusedForConditionalGeneration
from tests.original_branches import difference, golden
from tests.test_lion import parameters

HINT = 47  # the id that the official tokenizer gives to <extra_id_0> in these fixtures


class Given(nn.Module):
    """A branch whose encoder's features are given: `projector` makes tokens of them."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, inputs: Mapping[str, list[torch.Tensor]], **_: Any) -> list[Seen]:
        return [Seen(self.projector(one[None])[0]) for one in inputs["features"]]


def model_of(
    facts: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    sorted_: Imported,
    branches: dict[str, int],
    prefix: str = "",
) -> FusedForConditionalGeneration:
    """The fused model of a fixture. branches: name -> token id."""
    graft = sorted_.graft
    assert graft is not None
    text = {**facts["t5_config"], "model_type": "t5", **(
        {"dense_act_fn": graft.config["activation"]} if graft.config["activation"] else {})}  # fmt: skip
    entry = {"name": "lion", "kind": "lion", "config": graft.config, "scale": 1.0, "tokens": {}, "token_ids": {}}
    if graft.config["hint"]:
        entry |= {"tokens": {"hint": 0}, "token_ids": {"hint": HINT}}
    config = FusedConfig(
        text_config=text, host_type="t5", grafts=[entry],
        branches=[{"name": n, "kind": "encoder", "token": n, "token_id": i, "config": {}} for n, i in branches.items()],
    )  # fmt: skip
    model = FusedForConditionalGeneration(config).eval()
    wanted = {f"grafts.lion.{name}": tensor for name, tensor in graft.tensors.items()}
    for name, tensor in tensors.items():
        key = name.removeprefix(f"param.{prefix}")
        if name.startswith(f"param.{prefix}") and ".adapter." not in key:
            wanted[f"language_model.{key}"] = tensor
    missing, unexpected = model.load_state_dict(
        {k: v for k, v in wanted.items() if k in model.state_dict()}, strict=False
    )
    assert not unexpected
    assert all(name.endswith("embed_tokens.weight") or name.startswith("branches.") for name in missing), missing
    return model


@pytest.fixture
def t5() -> Any:
    tensors, facts = golden("lion_t5")
    found = sort_keys({f"t5_model.{name}": value for name, value in parameters(tensors).items()}, About())
    assert found.projector is None
    assert all(reason.startswith("a weight of the language model") for reason in found.dropped.values())
    return model_of(facts, tensors, found, {}), tensors, float(facts["tolerance"])


@torch.no_grad()
def test_logits_by_task(t5: Any) -> None:
    model, tensors, tolerance = t5
    given = {key: tensors[f"input.{key}"] for key in ("input_ids", "attention_mask", "decoder_input_ids")}
    for task, name in enumerate(TASKS):
        out = model(**given, grafts={"lion": {"task": name}})
        seen = given["attention_mask"].bool()
        found = out.encoder_last_hidden_state[seen]
        assert difference(found, tensors[f"inter.encoder_last_idx{task}"][seen]) <= tolerance
        assert difference(out.logits, tensors[f"output.logits_idx{task}"]) <= tolerance
    plain = model(**given)  # as the config says
    assert torch.equal(plain.logits, out.logits)


@torch.no_grad()
def test_an_adapter_reads_the_residual_stream(t5: Any) -> None:
    """In front of the norm, and it is added to what the layer gives."""
    model, tensors, tolerance = t5
    ids, mask = tensors["input.input_ids"], tensors["input.attention_mask"]
    kept: list[Any] = []
    model.grafts["lion"].get_submodule("encoder.0").register_forward_hook(
        lambda m, given, out: kept.append((given[0], out))
    )
    seen = mask.bool()
    for task, name in enumerate(TASKS):
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :1], grafts={"lion": {"task": name}})
        for what, found in zip(("in", "out"), kept[task], strict=True):
            assert difference(found[seen], tensors[f"inter.enc0_adapter_{what}_idx{task}"][seen]) <= tolerance


@torch.no_grad()
def test_without_the_graft(t5: Any) -> None:
    model, tensors, tolerance = t5
    given = {key: tensors[f"input.{key}"] for key in ("input_ids", "attention_mask", "decoder_input_ids")}
    loud = model(**given).logits
    model.set_scale("lion", 0)
    found = model(**given).logits
    assert difference(found, tensors["output.logits_without_adapters"]) <= tolerance
    assert torch.equal(found, model.language_model(**given).logits)
    model.set_scale("lion", 1.0)
    assert torch.equal(model(**given).logits, loud)


@torch.no_grad()
def test_every_prompt_has_its_task(t5: Any) -> None:
    """The authors' code takes the first prompt's task for all; here a batch may hold both, with beams too."""
    model, tensors, tolerance = t5
    given = {key: tensors[f"input.{key}"] for key in ("input_ids", "attention_mask", "decoder_input_ids")}
    found = model(**given, grafts={"lion": {"task": ["image", "region"]}}).logits
    assert difference(found[:1], tensors["output.logits_idx1"][:1]) <= tolerance
    assert difference(found[1:], tensors["output.logits_idx0"][1:]) <= tolerance
    given.pop("decoder_input_ids")
    how = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    both = model.generate(**given, **how, grafts={"lion": {"task": ["image", "region"]}})
    for row, task in enumerate(["image", "region"]):
        alone = {key: value[row : row + 1] for key, value in given.items()}
        assert torch.equal(model.generate(**alone, **how, grafts={"lion": {"task": task}})[0], both[row])


@torch.no_grad()
def test_generating_step_by_step_is_one_pass(t5: Any) -> None:
    model, tensors, _ = t5
    given = {key: tensors[f"input.{key}"] for key in ("input_ids", "attention_mask")}
    for task in TASKS:
        asked = {"lion": {"task": task}}
        said = model.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False, grafts=asked)
        again = model(**given, decoder_input_ids=said[:, :-1], grafts=asked).logits
        again[..., [1, model.generation_config.eos_token_id]] = -torch.inf  # what `min_new_tokens` forbids
        assert torch.equal(again.argmax(-1), said[:, 1:])


def test_what_may_be_asked(t5: Any) -> None:
    model, tensors, _ = t5
    ids = tensors["input.input_ids"]
    for asked, told in {
        "words": "graft 'lion': task cannot be 'words'",
        ("image", "image", "image"): "there are 3 tasks for 2 prompts (one for all, or one for each)",
    }.items():
        with pytest.raises(RecipeError) as caught:
            model(input_ids=ids, decoder_input_ids=ids[:, :1], grafts={"lion": {"task": asked}})
        assert str(caught.value) == told


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LIONT5InstructAdapter with `visual_input="ALL"`: a Q-Former's tokens, the aggregator's, the words."""
    tensors, facts = golden("lion_full")
    made = facts["constructor"]
    heads = About(options={"heads": made["num_heads"]})
    found = sort_keys(parameters(tensors), heads)
    assert found.projector is not None
    assert found.projector.config == {
        "layers": [38, 28, 18], "heads": 4, "width": 24, "inner": 96, "hidden_size": 32, "intermediate": 20,
    }  # fmt: skip
    linear, aggregator = nn.Linear(made["qformer_hidden"], 32), LionAggregator(found.projector.config)
    branches = {"qformer": Given(linear), "aggregator": Given(aggregator)}
    monkeypatch.setattr(fused, "build_branch", lambda branch, attention: branches[branch["name"]])
    model = model_of(facts, tensors, found, {"qformer": 1, "aggregator": 2}, "t5_model.")
    linear.load_state_dict({name: tensors[f"param.t5_proj.{name}"] for name in ("weight", "bias")})
    aggregator.load_state_dict(dict(found.projector.tensors))
    return model, tensors, facts


def prompt_of(tensors: dict[str, torch.Tensor], queries: int) -> dict[str, Any]:
    """The fixture's inputs as the processor writes them: both branches' tokens before the words."""
    ids, mask = tensors["input.input_ids"], tensors["input.attention_mask"]
    blocks = torch.stack([tensors[f"input.vit_block{i}"] for i in (38, 28, 18)], 1)
    before = torch.tensor([1] * queries + [2] * blocks.shape[2]).expand(len(ids), -1)
    given: dict[str, Any] = {
        "input_ids": torch.cat([before, ids], 1), "attention_mask": torch.cat([torch.ones_like(before), mask], 1),
        "branches.qformer.features": list(tensors["input.qformer_last_hidden_state"][:, :queries]),
        "branches.aggregator.features": list(blocks),
    }  # fmt: skip
    for name, count in (("qformer", queries), ("aggregator", blocks.shape[2])):
        given[f"branches.{name}.runs"] = [torch.tensor([[count, count]])] * len(ids)
        given[f"branches.{name}.grid"] = [torch.tensor([0, 0, 0])] * len(ids)
    return given


@torch.no_grad()
def test_the_whole_forward_pass(whole: Any) -> None:
    model, tensors, facts = whole
    given, tolerance = prompt_of(tensors, facts["constructor"]["n_query"]), float(facts["tolerance"])
    prompt = model.read(**given)
    assert torch.equal(prompt.attention_mask, tensors["inter.encoder_attention_mask"])
    seen = prompt.attention_mask.bool()
    assert difference(prompt.embeds[seen], tensors["inter.inputs_embeds"][seen]) <= tolerance
    answers, mask = tensors["input.answer_ids"], tensors["input.answer_mask"]
    labels = answers.masked_fill(answers == 0, -100)
    for task, name in enumerate(TASKS):
        out = model(**given, labels=labels, decoder_attention_mask=mask, grafts={"lion": {"task": name}})
        assert difference(out.logits, tensors[f"output.logits_idx{task}"]) <= tolerance
        assert difference(out.loss, tensors[f"output.loss_idx{task}"]) <= tolerance


def test_keys_that_no_branch_carries_have_a_reason() -> None:
    tensors, facts = golden("lion_full")
    found = sort_keys(parameters(tensors), About(options={"heads": facts["constructor"]["num_heads"]}))
    reasons = {key: why for key, why in found.dropped.items() if key.startswith("t5_proj.")}
    told = "of the Q-Former, which reads the question in BERT's words and has no branch here"
    assert reasons == {"t5_proj.weight": told, "t5_proj.bias": told}
