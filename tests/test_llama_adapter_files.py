"""LLaMA-Adapter's files: what a key becomes, what they do not tell, and what does not fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fuse import families
from fuse.errors import CheckpointError
from fuse.families import Basis
from fuse.grafts import llama_adapter_files as files
from fuse.grafts.llama_adapter import LlamaAdapterGraft
from fuse.grafts.slots import slots_of
from fuse.importers import About
from fuse.importers.llama_adapter import halves, sort_keys
from tests import tiny_text
from tests.official_adapters import first, random, second
from tests.original_branches import difference

D, HEADS = 32, 4


def basis(**changes: Any) -> Basis:
    told = tiny_text.build("llama").config.to_dict()
    found = families.basis_of(told, families.family_of(told, ""), "")
    return replace(found, **{"kv_heads": HEADS, **changes})


def imported(state: dict[str, torch.Tensor], **options: Any) -> dict[str, Any]:
    found = sort_keys(state, About(options=options))
    assert found.graft
    return found.graft.config


@pytest.mark.parametrize(
    ("depth", "rows", "trained", "length"),
    [(2, 6, 2, 3), (32, 300, 30, 10), (4, 20, 0, 5), (4, 20, 3, 10), (8, 8, 8, 1)],
)
def test_prompts_of_a_layer_are_counted_by_the_gates_that_were_trained(
    depth: int, rows: int, trained: int, length: int
) -> None:
    """Where that is no whole number, there are ten, as in all that the authors published."""
    assert imported(first(depth, rows, trained))["length"] == length


def test_every_key_of_version_2_has_a_place() -> None:
    state = second()
    found = sort_keys({**state, "llama.tok_embeddings.weight": random(2, D), "clip.visual.proj": random(4, 4),
                       "llama.layers.0.attention.wq.weight": random(D, D)}, About(options={"norm_eps": 1e-6, "length": 3}))  # fmt: skip
    assert found.graft and found.projector is None
    went = [key for keys in found.graft.origins.values() for key in keys]
    assert sorted(went) == sorted(state)
    assert found.dropped == {
        "llama.tok_embeddings.weight": "a weight of the base, which training left alone: the host brings its own",
        "clip.visual.proj": "the image encoder, which a recipe names by itself",
        "llama.layers.0.attention.wq.weight": "a weight of the base, which training left alone: the host brings its own",
    }
    assert {k: tuple(v.shape) for k, v in found.graft.tensors.items()} == files.shapes(found.graft.config)
    assert found.graft.config["norm_eps"] == 1e-6 and found.graft.config["norms"] == ["attention", "ffn", "final"]
    assert torch.equal(
        found.graft.tensors["layers.1.q.bias"], halves(state["llama.layers.1.attention.wq.bias"], D // HEADS)
    )
    assert torch.equal(found.graft.tensors["layers.1.v.up"], state["llama.layers.1.attention.lora_wv_l2.weight"])


def test_version_1_leaves_the_bases_norms_alone() -> None:
    extra = {"norm.weight": random(D), "layers.0.attention_norm.weight": random(D), "output.weight": random(4, D)}
    found = sort_keys({**first(), **extra}, About())
    assert found.graft and found.graft.config["norms"] == [] and set(found.dropped) == set(extra)


def test_pairs_become_halves() -> None:
    assert halves(torch.arange(8), 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert halves(torch.arange(16).reshape(8, 2), 8)[:, 0].tolist() == [0, 4, 8, 12, 2, 6, 10, 14]


def lacking(key: str) -> dict[str, torch.Tensor]:
    state = second()
    del state[key]
    return state


GATE = {f"llama.layers.{i}.attention.gate": random(1, HEADS, 1, 1) for i in range(2)}


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({"layers.0.attention.gate": random(1, 4, 1, 1)}, {}, "holds no adapter_query.weight with gates of layers (LLaMA-Adapter: prompts and gates of version 1, or a multimodal file of version 2 (BIAS-7B.pth))"),
        (first(rows=7), {}, "7 prompts of 10 each are those of 0.7 blocks, not of 1 to 2 (--set length=N: prompts of one layer)"),
        (first(), {"length": "ten"}, "length is 'ten', not a whole number of at least 1 (--set length=N: prompts of one layer)"),
        (second(), {"length": 3}, "holds norms, and how small a variance they bear is not known (--host FOLDER, or --set norm_eps=1e-6 as LLaMA's params.json says)"),
        (lacking("llama.layers.1.attention.lora_wq_l1.weight"), {"norm_eps": 1e-6, "length": 3}, "holds nothing for layers.1.q.down, though it does for other layers"),
        (lacking("llama.layers.1.ffn_norm.weight"), {"norm_eps": 1e-6, "length": 3}, "holds nothing for norms.1.ffn, though it does for other layers"),
        ({k.replace("layers.1", "layers.2"): v for k, v in first().items()}, {"length": 3}, "holds no gate of layer 1, though of 2 others"),
        ({**first(), "layers.0.attention.wq_scale": random(D)}, {}, "tensor 'layers.0.attention.wq_scale' is of the chat model of version 2, whose input scales fuse does not carry (fuse imports version 1 and the multimodal files of version 2)"),
        ({"adapter_query.weight": random(6, D), **GATE, "visual_query.weight": random(3, 8)}, {}, "holds visual_query.weight without the blocks that read it"),
    ],
)  # fmt: skip
def test_files_that_are_none(state: dict[str, torch.Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        sort_keys(state, About(options=options))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"hidden_size": 64}, "has hidden size 64, and the adapter was trained for 32"),
        ({"layers": 3}, "has 3 layers, and the adapter was trained for 2"),
        ({"heads": 8}, "has 8 heads, and the adapter was trained for 4"),
        ({"kv_heads": 2}, "makes 16 numbers of 32 in k, and the adapter 32 of 32"),
        ({"intermediate_size": 40}, "makes 40 numbers of 32 in gate, and the adapter 48 of 32"),
        ({"family": "gpt2"}, "has no projection 'gate', which the adapter changes"),
        ({"family": "t5"}, "has no stack of blocks whose attention takes prompts"),
        ({"family": "gemma2"}, "has no stack of blocks whose attention takes prompts"),
    ],
)
def test_hosts_that_cannot_take_it(changes: dict[str, Any], message: str) -> None:
    assert files.why_not(imported(second(), norm_eps=1e-6, length=3), basis(**changes)) == message


def test_a_host_of_layer_norms_cannot_take_the_others() -> None:
    config = imported(second(lora=False, biases=False), norm_eps=1e-6, length=3)
    told = files.why_not(config, basis(family="gpt2"))
    assert told == "has layer norms, and the adapter's are root-mean-square norms"
    assert files.why_not(imported(first()), basis(family="gpt2")) == ""


def test_options_of_a_recipe() -> None:
    config = imported(first())
    assert files.configured(config, {"gate": "raw"})["gate"] == "raw"
    assert list(files.prompted(files.configured(config, {"length": 6}))) == [1]
    with pytest.raises(ValueError, match=r"^6 prompts of 4 each are those of 1\.5 blocks, not of 1 to 2$"):
        files.configured(config, {"length": 4})
    visual = {**config, "visual": {"features": 4, "width": 8, "depth": 1, "heads": 2, "inner": 8}}
    with pytest.raises(ValueError, match=r"^length is 6, and an image gives 3 visual prompts$"):
        files.configured(visual, {"length": 6})
    with pytest.raises(ValueError, match=r"^3 heads do not divide a width of 8$"):
        files.shapes({**visual, "visual": {**visual["visual"], "heads": 3}})


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma", "smollm3", "phi3", "gpt2", "opt"])
def test_gates_of_0_leave_every_host_as_it_is(kind: str) -> None:
    """The starting point of the authors' training (arXiv 2303.16199, section 3.2), and others move it."""
    host: Any = tiny_text.build(kind).double()
    ids = torch.tensor([[5, 9, 33, 21]])
    graft = built(first()).double()
    with torch.no_grad():
        before = host(ids).logits
        graft.attach(slots_of(host))
        assert difference(host(ids).logits, before) > 1e-4
        graft.gate.zero_()
        assert difference(host(ids).logits, before) < 1e-12


def built(state: dict[str, torch.Tensor], **options: Any) -> LlamaAdapterGraft:
    found = sort_keys(state, About(options=options))
    assert found.graft
    graft = LlamaAdapterGraft(found.graft.config)
    graft.load_state_dict(dict(found.graft.tensors))
    return graft


def test_scale_goes_with_gates_changes_and_norms() -> None:
    """At half the scale, a block is one whose gates, biases and LoRA are halved and whose norms are half way."""
    state = second()
    hosts: list[Any] = [tiny_text.build("llama", num_key_value_heads=HEADS).double() for _ in range(2)]
    grafts = [built(state, norm_eps=1e-6, length=3, gate="raw").double() for _ in hosts]
    grafts[0].scale = 0.5
    with torch.no_grad():
        for name, parameter in grafts[1].named_parameters():
            if name == "gate" or name.endswith((".bias", ".up")):
                parameter.mul_(0.5)
            elif name.startswith("norms."):
                parameter.mul_(0.5).add_(0.5)  # the host's gains are 1
        for host, graft in zip(hosts, grafts, strict=True):
            graft.attach(slots_of(host))
        ids = torch.tensor([[5, 9, 33, 21]])
        assert difference(hosts[0](ids).logits, hosts[1](ids).logits) < 1e-6  # the host's own norms are in float32
