"""LION's adapters against the official code's numbers; hosts, options, sentences; the fold."""

from typing import Any

import pytest
import torch

from fuse.errors import CheckpointError, RecipeError
from fuse.families import Basis
from fuse.grafts import lion_files
from fuse.grafts.graft import Reading
from fuse.grafts.lion import Adapter, AdapterRouter, LionGraft
from fuse.grafts.lion_fold import fold
from tests.original_branches import difference, golden, seeded

CONFIG = {"stacks": {"encoder": 2, "decoder": 1}, "width": 16, "bottleneck": 6, "hint": True}
ONE = {"width": 16, "bottleneck": 6, "adapters": 2, "adapter_norm": "none", "adapter_scale": "learned"}


def parameters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("param."): value for key, value in tensors.items() if key.startswith("param.")}


def basis(**changes: Any) -> Basis:
    told: dict[str, Any] = {
        "family": "t5", "hidden_size": 16, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 8,
        "intermediate_size": 32, "vocab_size": 64, "norm_eps": 1e-6, "rope_theta": None, "rope_scaling": "",
        "activation": "gated-gelu", "tied": False, "sizes": {"m": 1},
    }  # fmt: skip
    return Basis(**{**told, **changes})


@pytest.mark.parametrize(
    ("name", "norm"), [("lion_adapter", "none"), ("lion_adapter_ln_in", "in"), ("lion_adapter_ln_out", "out")]
)
def test_an_adapter_is_the_official_one(name: str, norm: str) -> None:
    tensors, facts = golden(name)
    made = facts["constructor"]
    adapter = Adapter(made["d_model"], made["bottleneck"], norm)
    adapter.load_state_dict(parameters(tensors))
    x = tensors["input.x"]
    with torch.no_grad():
        assert difference(adapter(x), tensors["output.y"]) <= float(facts["tolerance"])
        inside = adapter.adapter_layer_norm_before(x) if norm == "in" else x
        assert difference(adapter.down_proj(inside).relu(), tensors["inter.relu_down"]) <= float(facts["tolerance"])


def test_a_scale_that_is_a_number() -> None:
    """The authors' `adapter_scalar` that is not learned: no tensor, the same formula."""
    tensors, facts = golden("lion_adapter")
    given = parameters(tensors)
    scale = float(given.pop("scale"))
    adapter = Adapter(16, 6, "none", scale)
    adapter.load_state_dict(given)
    with torch.no_grad():
        assert difference(adapter(tensors["input.x"]), tensors["output.y"]) <= float(facts["tolerance"])


def test_the_router_hears_by_task() -> None:
    tensors, facts = golden("lion_adapter_router")
    router = AdapterRouter(ONE)
    router.load_state_dict(parameters(tensors))
    x, tolerance = tensors["input.x"], float(facts["tolerance"])
    with torch.no_grad():
        for task in (0, 1):
            assert difference(router(x, task), tensors[f"output.idx{task}"]) <= tolerance
            assert difference(router.adapters[task](x), tensors[f"inter.adapter{task}"]) <= tolerance
        mixed = router(x, torch.tensor([1, 0]))  # a task for each row, which the authors' code does not have
        assert difference(mixed[:1], tensors["output.idx1"][:1]) <= tolerance
        assert difference(mixed[1:], tensors["output.idx0"][1:]) <= tolerance


def test_the_official_beginning_hears_one_adapter_by_task() -> None:
    tensors, _ = golden("lion_adapter_router")
    first, second = tensors["inter.init_router_ratio1"], tensors["inter.init_router_ratio2"]
    for task, name in enumerate(lion_files.TASKS):
        assert (float(first[task].mean()), float(second[task].mean())) == {"region": (1, 0), "image": (0, 1)}[name]


def test_a_single_adapter_has_no_router() -> None:
    tensors, facts = golden("lion_adapter_router_single")
    router = AdapterRouter({**ONE, "adapters": 1})
    router.load_state_dict(parameters(tensors))
    with torch.no_grad():
        assert difference(router(tensors["input.x"], 1), tensors["output.y"]) <= float(facts["tolerance"])


VARIANTS = [
    {}, {"hint": False}, {"adapters": 1}, {"adapter_norm": "in"}, {"adapter_norm": "out"}, {"adapter_scale": 0.5},
    {"stack": "decoder"}, {"stacks": {"language": 3}},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS)
def test_tensors_are_those_of_the_module(changes: dict[str, Any]) -> None:
    config = {**CONFIG, **changes}
    with torch.device("meta"):
        graft = LionGraft(config)
    assert {name: tuple(t.shape) for name, t in graft.state_dict().items()} == lion_files.shapes(config)


class Stack:
    """Keeps what is attached, as a stack of slots does."""

    def __init__(self) -> None:
        self.given: dict[int, Any] = {}

    def ffn_residual(self, layer: int, beside: Any) -> None:
        assert layer not in self.given
        self.given[layer] = beside


def attached(graft: LionGraft, *names: str) -> dict[str, Stack]:
    stacks = {name: Stack() for name in names}
    graft.attach(stacks)  # pyright: ignore
    return stacks


def test_attaches_to_every_layer() -> None:
    graft = seeded(LionGraft(CONFIG))
    graft.scale = 0.5
    stacks = attached(graft, "encoder", "decoder")
    assert {name: sorted(stack.given) for name, stack in stacks.items()} == {"encoder": [0, 1], "decoder": [0]}
    h, y = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    with torch.no_grad():
        for name, task in (("region", 0), ("image", 1)):
            graft.config["task"] = name
            wanted = y + 0.5 * graft.get_submodule("encoder.1")(h, task)
            assert torch.equal(stacks["encoder"].given[1](h, y), wanted)


def test_one_side_goes_to_a_decoder() -> None:
    graft = LionGraft({**CONFIG, "stack": "encoder"})
    assert sorted(attached(graft, "language")["language"].given) == [0, 1]
    assert not any(name.startswith("decoder") for name in graft.state_dict())


def reading(ids: torch.Tensor, options: dict[str, Any], tokens: dict[str, int]) -> Reading:
    mask = torch.ones_like(ids)
    embeds = torch.randn(*ids.shape, 16)
    return Reading(ids, mask, 0 * ids, embeds, {}, lambda i: i, lambda e, m: e, tokens, options)


def test_reads_the_task_and_puts_the_hint() -> None:
    graft = seeded(LionGraft(CONFIG))
    ids = torch.tensor([[4, 9, 5], [9, 9, 7]])
    told = reading(ids, {}, {"hint": 9})
    before = told.embeds.clone()
    assert graft.read(told)["task"].tolist() == [1, 1]
    hint = ids == 9
    assert torch.equal(told.embeds[hint], graft.soft_prompt_hint.expand(3, -1))
    assert torch.equal(told.embeds[~hint], before[~hint])
    assert graft.read(reading(ids, {"task": "region"}, {}))["task"].tolist() == [0, 0]
    assert graft.read(reading(ids, {"task": ["region", "image"]}, {}))["task"].tolist() == [0, 1]
    with pytest.raises(RecipeError) as caught:
        graft.read(reading(ids, {"task": ["region"]}, {}))
    assert str(caught.value) == "there are 1 tasks for 2 prompts (one for all, or one for each)"


def test_a_task_that_nothing_hears_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        LionGraft({**CONFIG, "adapters": 1}).read(reading(torch.tensor([[4]]), {"task": "image"}, {}))
    assert str(caught.value) == "a task was asked for, and these adapters have no router"


def test_beams_keep_their_prompts_tasks() -> None:
    graft = seeded(LionGraft(CONFIG))
    beside = attached(graft, "encoder", "decoder")["decoder"].given[0]
    h, y = torch.randn(4, 3, 16), torch.zeros(4, 3, 16)
    router = graft.get_submodule("decoder.0")
    with torch.no_grad():
        graft.state = {"task": torch.tensor([0, 1])}
        assert torch.equal(beside(h, y)[:2], router(h, 0)[:2])
        assert torch.equal(beside(h, y)[2:], router(h, 1)[2:])


@pytest.mark.parametrize("asked", ["image", "region", ["image", "region"]])
def test_what_may_be_asked(asked: Any) -> None:
    assert LionGraft.ASKED["task"](asked)


@pytest.mark.parametrize("asked", ["", "Image", 1, [], None, ["image", 0]])
def test_what_may_not(asked: Any) -> None:
    assert not LionGraft.ASKED["task"](asked)


@pytest.mark.parametrize(
    ("config", "host", "why"),
    [
        ({}, {}, ""),
        ({}, {"hidden_size": 24}, "has hidden size 24, and LION's adapters were made for 16"),
        ({}, {"layers": 3}, "has 3 layers in its encoder, and LION's adapters are for 2"),
        ({}, {"sizes": {"m": 4}}, "has 4 layers in its decoder, and LION's adapters are for 1"),
        ({}, {"family": "llama"}, "is a decoder alone, and LION's adapters were made for an encoder and a decoder: "
         "`stack: encoder` or `stack: decoder` takes those of one"),
        ({"stack": "encoder"}, {"family": "llama"}, ""),
        ({"stack": "decoder"}, {"family": "llama"}, "has 2 layers, and LION's adapters are for 1"),
        ({"stack": "decoder"}, {}, "is an encoder and a decoder, and `stack: decoder` takes the adapters of one of them"),
        ({"stacks": {"language": 2}}, {"family": "llama"}, ""),
        ({"stacks": {"language": 2}}, {}, "is an encoder and a decoder, and LION's adapters were made for a decoder alone"),
    ],
)  # fmt: skip
def test_hosts(config: dict[str, Any], host: dict[str, Any], why: str) -> None:
    assert lion_files.why_not({**CONFIG, **config}, basis(**host)) == why


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stacks": {}}, 'stacks is neither {"language": LAYERS} nor {"encoder": LAYERS, "decoder": LAYERS}'),
        ({"stacks": {"language": True}}, "layers of language is True, not a whole number from 1 to 10,000"),
        ({"stacks": {"language": 10**9}}, "layers of language is 1000000000, not a whole number from 1 to 10,000"),
        ({"width": 0}, "width is 0, not a whole number from 1 to 1,048,576"),
        ({"adapters": 3}, "adapters is 3, and there are 1 or 2"),
        ({"adapter_scale": float("nan")}, "adapter_scale is nan, neither 'learned' nor a number"),
        ({"adapter_norm": "both"}, "adapter_norm is 'both', not one of none, in, out"),
        ({"task": "words"}, "task is 'words', not one of region, image"),
        ({"stacks": {"language": 2}, "stack": "encoder"}, "stack is 'encoder', and there are adapters of language"),
    ],
)  # fmt: skip
def test_configs_that_are_none(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        lion_files.shapes({**CONFIG, **changes})
    assert str(caught.value) == told
    with pytest.raises(CheckpointError) as refused:
        LionGraft({**CONFIG, **changes})
    assert str(refused.value) == f"config.json: config of a lion graft: {told}"


def test_options_of_a_recipe() -> None:
    made = lion_files.configured({**CONFIG, "activation": "gelu"}, {"task": "region", "scale": 0.5})
    assert (made["task"], made["activation"], made["adapters"]) == ("region", "gelu", 2)
    assert lion_files.host_settings(made, basis()) == {"dense_act_fn": "gelu"}
    assert lion_files.host_settings(made, basis(family="llama")) == {}
    plain = lion_files.configured({**CONFIG, "activation": "gelu"}, {"activation": "host"})
    assert lion_files.host_settings(plain, basis()) == {}
    assert lion_files.tokens(made) == {"hint": 0}
    assert lion_files.tokens({**made, "hint": False}) == {}


@pytest.mark.parametrize(
    ("config", "options", "told"),
    [
        ({"adapters": 1}, {"task": "image"}, "`task` chooses between two adapters, and this donor has one in each layer"),
        ({"stacks": {"language": 2}}, {"stack": "encoder"},
         "`stack` chooses a side of an encoder-decoder, and this donor was cut from a decoder alone"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(config: dict[str, Any], options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        lion_files.configured({**CONFIG, **config}, options)
    assert str(caught.value) == told


def test_the_sentence_about_tags() -> None:
    told = "According to <T>, you are allowed to use or partially use the following tags: [dog, red cat]. What is it?"
    assert lion_files.phrase("What is it?", ["dog", "red cat"], "<T>") == told
    assert lion_files.phrase("What is it?", "dog, red cat", "<T>") == told
    assert lion_files.phrase("What is it?", ["dog"]) == (
        "You are allowed to use or partially use the following tags: [dog]. What is it?"
    )
    assert lion_files.phrase("What is it?", [], "<T>") == lion_files.phrase("What is it?", " ", "<T>") == "What is it?"


@pytest.mark.parametrize("task", lion_files.TASKS)
@pytest.mark.parametrize("changes", [{}, {"adapter_norm": "in"}, {"adapter_scale": -0.5}, {"stack": "encoder"}])
def test_two_adapters_fold_into_one(task: str, changes: dict[str, Any]) -> None:
    config = {**CONFIG, "task": task, **changes}
    graft = seeded(LionGraft(config)).double()
    made, tensors = fold(config, graft.state_dict())
    assert {name: tuple(t.shape) for name, t in tensors.items()} == lion_files.shapes(made)
    one = LionGraft(made).double()
    one.load_state_dict(tensors)
    h = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in ("encoder.0", "encoder.1", "decoder.0")[: 2 if changes.get("stack") else 3]:
            two = graft.get_submodule(name)(h, lion_files.TASKS.index(task))
            assert difference(one.get_submodule(name)(h, 0), two) < 1e-13
            assert difference(two, graft.get_submodule(name)(h, 1 - lion_files.TASKS.index(task))) > 1e-3
    assert made["bottleneck"] == 12
    assert torch.equal(tensors["soft_prompt_hint"], graft.soft_prompt_hint)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adapters": 1}, "LION's donor has one adapter in each layer, and there is nothing to fold"),
        ({"adapter_norm": "out"}, "two adapters with a norm behind each do not fold into one"),
    ],
)
def test_what_does_not_fold(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        lion_files.folded({**CONFIG, **changes})
    assert str(caught.value) == told
