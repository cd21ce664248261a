"""Bridges: a graft on a host that is its own in other axes does what it did there, to 1e-12."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from fuse.anatomy import Member, open_member
from fuse.errors import CheckpointError
from fuse.grafts import bridge as crossing
from fuse.grafts.bridge import Bridge
from fuse.grafts.bridge_files import bridge_config, shapes
from fuse.grafts.bridge_rows import make_bridge, why_poor
from fuse.grafts.graft import Graft, Reading, Sight
from fuse.grafts.kinds import build_graft
from fuse.grafts.slots import slots_of
from tests import tiny_text
from tests.members import save_member
from tests.rotated_hosts import WIDTH, build, turn, turned

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(4))
TEXTS = [
    " ".join(f"w{n}" for n in torch.randint(3, 60, (20,), generator=torch.Generator().manual_seed(i)).tolist())
    for i in range(20)
]
METHODS = ["procrustes", "ridge", "embedding"]

MKS2 = {
    "hidden_size": WIDTH, "inner_size": 12, "layers": [0, 1], "activation": "silu", "gated": True, "bias": True,
    "norm": "host", "place": "beside", "router": "additive",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "mks2": MKS2,
    "mks2 softmax": MKS2 | {"router": "softmax", "layers": [1]},
    "mks2 norm": MKS2 | {"norm": "rms", "norm_eps": 1e-6},
    "lion": {"width": WIDTH, "bottleneck": 6, "stacks": {"language": 2}, "hint": True},
    "llama_adapter": {
        "hidden_size": WIDTH, "depth": 2, "heads": 4, "rows": 6, "length": 3, "gate": "tanh", "new_gate": False,
        "linears": {}, "norms": [], "visual": None,
    },
}  # fmt: skip


def member(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Member:
    save_member(model, folder, dtype=dtype)
    return open_member(folder.name, str(folder), revision=None, relative_to=Path())


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Member]:
    """Members whose sizes are those of the models; weights of their own do not matter."""
    folder = tmp_path_factory.mktemp("members")
    made = {
        "own": {},
        "wide": {"hidden_size": 48},
        "deep": {"num_hidden_layers": 4},
        "narrow": {"hidden_size": 16, "head_dim": 8},
    }
    return {name: member(tiny_text.build("llama", **settings), folder / name) for name, settings in made.items()}


@pytest.fixture(scope="module")
def tokenizer(members: Mapping[str, Member]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(members["own"].folder)


def grafted(name: str) -> Graft:
    kind = name.split(maxsplit=1)[0]
    graft = build_graft({"name": name, "kind": kind, "config": CONFIGS[name]}).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in graft.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return graft


def with_bridge(graft: Graft, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Graft:
    """The graft with a bridge whose tensors are loaded by the names that they have on disk."""
    crossing.bridged(graft, config)
    graft.double()
    lost, extra = graft.load_state_dict(tensors, strict=False)
    assert not extra
    assert not [name for name in lost if name.startswith("bridge.")]
    return graft


def logits(model: Any, graft: Graft | None = None, **given: Any) -> torch.Tensor:
    slots = slots_of(model)
    if graft is not None:
        crossing.attach(graft, slots)
    with torch.no_grad():
        found = model(**(given or {"input_ids": IDS})).logits
    for stack in slots.values():
        stack.remove()
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_on_a_host_in_other_axes_a_graft_does_what_it_did(
    members: Mapping[str, Member], tokenizer: Any, name: str, method: str
) -> None:
    axes = turn(WIDTH)
    donor, host = build(), turned("llama", axes)
    assert torch.allclose(logits(donor), logits(host), atol=1e-12)
    config = bridge_config(name.split(maxsplit=1)[0], CONFIGS[name], method, members["own"], members["own"])
    tensors, fits = make_bridge(config, (donor, tokenizer), (host, tokenizer), TEXTS)
    assert {key: tuple(value.shape) for key, value in tensors.items()} == shapes(config)
    least = 0.99 if method == "ridge" else 1 - 1e-12  # ridge pulls what is written towards 0
    assert min(min(fit.read, fit.write) for fit in fits) > least
    assert why_poor(fits, 0.5) == ""
    wanted = logits(donor, grafted(name))
    assert (wanted - logits(donor)).abs().max() > 0.1
    found = logits(host, with_bridge(grafted(name), config, tensors))
    assert (found - wanted).abs().max() < (0.4 if method == "ridge" else 1e-12) * wanted.abs().max()


def test_a_graft_that_does_nothing_leaves_the_new_host_bit_by_bit(
    members: Mapping[str, Member], tokenizer: Any
) -> None:
    donor, host = build(), build(seed=5)
    config = bridge_config("mks2", MKS2, "procrustes", members["own"], members["own"])
    tensors, fits = make_bridge(config, (donor, tokenizer), (host, tokenizer), TEXTS)
    graft = grafted("mks2")
    with torch.no_grad():
        for name, parameter in graft.named_parameters():
            if "down" in name:
                parameter.zero_()
    assert torch.equal(logits(host, with_bridge(graft, config, tensors)), logits(host))
    assert fits[0].name == "language.0.ffn"
    assert why_poor(fits, 0.5).startswith("the bridge for language.")  # two models with random weights of their own


@pytest.mark.parametrize("other", ["wide", "narrow", "deep"])
@pytest.mark.parametrize("method", METHODS)
def test_other_widths_and_depths(members: Mapping[str, Member], tokenizer: Any, other: str, method: str) -> None:
    """The change that a memory makes is what the maps make of it, written out by hand."""
    size = {
        "wide": {"hidden_size": 48},
        "narrow": {"hidden_size": 16, "head_dim": 8},
        "deep": {"num_hidden_layers": 4},
    }[other]
    donor, host = build(), build(seed=2, **size)
    config = bridge_config("mks2", MKS2, method, members["own"], members[other])
    assert config["stacks"]["language"] == {"layers": 2, "onto": [0, 3] if other == "deep" else [0, 1]}
    tensors, _ = make_bridge(config, (donor, tokenizer), (host, tokenizer), TEXTS)
    graft = with_bridge(grafted("mks2"), config, tensors)
    given = {"inputs_embeds": torch.randn(2, 5, host.config.hidden_size, dtype=torch.float64)}
    before = _residual(host, given)
    graft.attach({"language": _only(graft.bridge.slots(slots_of(host))["language"], 1)})  # pyright: ignore[reportCallIssue]
    after = _residual(host, given)
    map_name = "embedding" if method == "embedding" else "language.1.ffn"
    down, offset = tensors[f"bridge.{map_name}.down"], tensors[f"bridge.{map_name}.offset"]
    size_of = tensors.get(f"bridge.{map_name}.size")
    up = tensors[f"bridge.{map_name}.up"] if size_of is None else down.T / size_of**2
    h = before["h"] @ down.T + offset
    gain = donor.model.layers[1].post_attention_layernorm.weight
    x = h / (h.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    memory = graft.layers["1"]  # pyright: ignore[reportIndexIssue]
    said = memory.down(nn.functional.silu(memory.gate(x)) * memory.up(x))
    assert torch.allclose(after["out"] - before["out"], said @ up.T, atol=1e-9)
    assert said.abs().max() > 1e-2


def _only(slots: Any, layer: int) -> Any:
    """Slots that let one layer through."""
    own = slots.ffn
    slots.ffn = lambda index, beside: own(index, beside) if index == layer else None
    return slots


def _residual(model: Any, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """h before the last block's MLP norm, and the residual stream behind the block."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.model.layers[-1].post_attention_layernorm.register_forward_pre_hook(
            lambda m, args: seen.update(h=args[0])
        ),
        model.model.norm.register_forward_pre_hook(lambda m, args: seen.update(out=args[0])),
    ]
    with torch.no_grad():
        model(**given)
    for handle in handles:
        handle.remove()
    return seen


class Speaks(Graft):
    """Reads embeddings and the last hidden state of a pass, and writes where the placeholder is, as LMEye does."""

    def __init__(self) -> None:
        super().__init__({})
        self.linear = nn.Linear(WIDTH, WIDTH)

    def attach(self, slots: Any) -> None:
        del slots

    def read(self, reading: Reading) -> dict[str, torch.Tensor]:
        here = (reading.input_ids == 7)[..., None]
        first = torch.where(here, self.linear.bias, reading.embeds)
        said = self.linear(reading.run(first, reading.attention_mask))
        said = said + reading.embed(reading.input_ids) + reading.sights["eye"][0].tokens.mean(0)
        reading.embeds = torch.where(here, said, first)
        return {"kept": said[:, 0]}


@pytest.mark.parametrize("method", ["procrustes", "embedding"])
def test_embeddings_and_the_last_hidden_state_cross(members: Mapping[str, Member], tokenizer: Any, method: str) -> None:
    axes = turn(WIDTH)
    donor, host = build(), turned("llama", axes)
    config = bridge_config("lmeye", {}, method, members["own"], members["own"])
    assert config["maps"] == ["embedding", "final"]
    tensors, fits = make_bridge(config, (donor, tokenizer), (host, tokenizer), TEXTS)
    assert [fit.name for fit in fits] == ["embedding"] if method == "embedding" else ["embedding", "final"]
    ids = IDS.clone()
    ids[0, 4] = ids[1, 2] = 7
    said = {}
    for name, model, sights in (
        ("donor", donor, torch.eye(WIDTH, dtype=torch.float64)[:2]),
        ("host", host, axes.T[:2]),
    ):
        torch.manual_seed(0)
        graft = Speaks().double()
        if name == "host":
            with_bridge(graft, config, tensors)
        run = lambda embeds, mask, model=model: model.model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state  # noqa: E731
        embed = model.model.embed_tokens
        before = embed(ids)
        eye = [Sight(0, sights, sights, torch.arange(2))]
        reading = Reading(ids, torch.ones_like(ids), torch.zeros_like(ids), before, {"eye": eye}, embed, run)
        with torch.no_grad():
            state = crossing.read(graft, reading)
        untouched = (ids != 7)[..., None]
        assert torch.equal(torch.where(untouched, reading.embeds, 0), torch.where(untouched, before, 0))
        said[name] = (reading.embeds.detach(), state["kept"])
    assert (said["host"][0] - said["donor"][0] @ axes.T).abs().max() < 1e-11
    assert torch.allclose(said["host"][1], said["donor"][1], atol=1e-11)  # the state stays in the donor's basis


def test_a_bridge_in_bfloat16_and_without_one(members: Mapping[str, Member], tokenizer: Any) -> None:
    axes = turn(WIDTH)
    donor, host = build(), turned("llama", axes)
    config = bridge_config("mks2", MKS2, "procrustes", members["own"], members["own"])
    tensors, _ = make_bridge(config, (donor, tokenizer), (host, tokenizer), TEXTS)
    wanted, plain = logits(donor, grafted("mks2")), logits(donor)
    graft = with_bridge(grafted("mks2"), config, tensors).bfloat16()
    found = logits(host.bfloat16(), graft)
    assert found.dtype == torch.bfloat16
    left = (found.double() - wanted).square().mean() / (wanted - plain).square().mean()
    assert left < 1e-2
    without = logits(turned("llama", axes), grafted("mks2"))  # same width: it runs, and says something else
    assert (without - wanted).square().mean() / (wanted - plain).square().mean() > 0.5


def test_two_donor_layers_may_share_a_layer(members: Mapping[str, Member], tokenizer: Any) -> None:
    config = bridge_config("mks2", MKS2 | {"layers": [0, 1, 2, 3]}, "procrustes", members["deep"], members["own"])
    assert config["stacks"]["language"] == {"layers": 4, "onto": [0, 0, 1, 1]}
    donor, host = build(num_hidden_layers=4), build(seed=3)
    tensors, _ = make_bridge(config, (donor, tokenizer), (host, tokenizer), TEXTS)
    graft = build_graft({"name": "m", "kind": "mks2", "config": MKS2 | {"layers": [0, 1, 2, 3]}}).double()
    with torch.no_grad():
        for parameter in graft.parameters():
            parameter.fill_(0.1)
    plain = logits(host)
    assert not torch.allclose(logits(host, with_bridge(graft, config, tensors)), plain)
    assert torch.equal(logits(host), plain)


def test_what_a_bridge_does_not_map(members: Mapping[str, Member]) -> None:
    config = bridge_config("mks2", MKS2 | {"layers": [1]}, "procrustes", members["own"], members["own"])
    slots = Bridge(config).slots(slots_of(tiny_text.build("llama")))["language"]
    for told, call in {
        "the bridge has no map for ffn of layer 0 (language)": lambda: slots.ffn(0, lambda x, y: y),
        "the bridge has no map for attention of layer 1 (language)": lambda: slots.norm_output(
            1, "attention", lambda x: x
        ),
        "a graft at q of layer 1 cannot cross to another basis": lambda: slots.linear(1, "q", lambda x, y: y),
        "a graft at the final norm of layer None cannot cross to another basis": lambda: slots.norm(
            None, "final", lambda x, y: y
        ),
    }.items():
        with pytest.raises(CheckpointError) as error:
            call()
        assert str(error.value) == told
    with pytest.raises(CheckpointError) as error:
        Bridge({"method": "procrustes", "width": 4})
    assert str(error.value) == "config.json: grafts: bridge is none: 'host_width'"


def test_a_vision_tower_is_left_alone(members: Mapping[str, Member]) -> None:
    config = bridge_config("mks2", MKS2, "procrustes", members["own"], members["own"])
    tower: Any = SimpleNamespace()
    assert Bridge(config).slots({"tower": tower})["tower"] is tower


class Changes(Graft):
    """Changes what both norms of every block give, as LaVIN's adapters do."""

    def __init__(self) -> None:
        super().__init__({})
        self.linear = nn.Linear(WIDTH, WIDTH)

    def attach(self, slots: Any) -> None:
        for layer in range(slots["language"].layers):
            for which in ("attention", "ffn"):
                slots["language"].norm_output(layer, which, lambda x: x + self.linear(x).sin())


@pytest.mark.parametrize("method", METHODS)
def test_what_norms_give_crosses(members: Mapping[str, Member], tokenizer: Any, method: str) -> None:
    donor, host = build(), turned("llama", turn(WIDTH))
    config = bridge_config("lavin", {"adapter_type": "block"}, method, members["own"], members["own"])
    tensors, _ = make_bridge(config, (donor, tokenizer), (host, tokenizer), TEXTS)
    torch.manual_seed(1)
    graft = Changes().double()
    wanted = logits(donor, graft)
    assert (wanted - logits(donor)).abs().max() > 0.1
    found = logits(host, with_bridge(graft, config, tensors))
    assert (found - wanted).abs().max() < (0.15 if method == "ridge" else 1e-11) * wanted.abs().max()


def test_a_text_may_be_read_by_two_tokenizers(members: Mapping[str, Member], tmp_path: Path, tokenizer: Any) -> None:
    """A host whose tokenizer splits words: states are paired where both have read the same characters."""
    from fuse.grafts.bridge_states import pair, states

    letters = _letters(tmp_path)
    texts = ["w10 w25 w3", "w59", "w4 w4"]
    pairs = pair(tokenizer, letters, texts)
    assert pairs.source == [[10, 25, 3], [59], [4, 4]]
    assert [letters.convert_ids_to_tokens(ids) for ids in pairs.target][2] == ["w", "4", "w", "4"]
    assert pairs.places == [[(1, 5), (2, 7)], [], [(1, 3)]]
    assert pairs.text.tolist() == [0, 0, 2]
    assert sum(map(len, pair(tokenizer, letters, texts, most=2).places)) == 2
    donor, host = build(), build(seed=3)
    kept = [[a for a, _ in places] for places in pairs.places]
    found = states(donor, pairs.source, kept, ["language.1.attention", "final"])
    out = donor(torch.tensor([[10, 25, 3]]), output_hidden_states=True).hidden_states[1]
    assert torch.equal(found["language.1.attention"][:2], out[0, 1:])
    assert found["final"].shape == (3, WIDTH)
    config = bridge_config("mks2", MKS2, "procrustes", members["own"], members["own"])
    many = [f"w{i} w{i + 1} w{i + 2} w{i // 2 + 3}" for i in range(3, 50)]
    _, fits = make_bridge(config, (donor, tokenizer), (host, letters), many)
    assert {fit.pairs for fit in fits} == {3 * (len(many) - len(many) // 5)}


def _letters(folder: Path) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    signs = ["<unk>", "<s>", "</s>", "w", *map(str, range(10))]
    inner = Tokenizer(models.WordLevel({sign: i for i, sign in enumerate(signs)}, unk_token="<unk>"))
    split = pre_tokenizers.Split(Regex("."), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="</s>").save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
