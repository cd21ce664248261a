"""LLaMA-Adapter's checkpoints in their authors' layouts through `fuse import`: where every key goes, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fuse.importers.llama_adapter import halves
from tests import recipe_members
from tests.cli import Ran, fuse_forked, fuse_here
from tests.official_adapters import HEADS, LENGTH, RANK, TINY, first, multimodal, random, second
from tests.original_branches import difference

FROZEN = "a weight of the base, which training left alone: the host brings its own"


def run(folder: Path, state: Any, *more: object, out: str = "donor") -> Ran:
    torch.save(state, folder / "adapter.pth")
    return fuse_forked("import", "llama_adapter", folder / "adapter.pth", folder / out, *more)


def test_version_1(tmp_path: Path) -> None:
    """The file that the authors extract: prompts of the upper layers, and a gate of every layer."""
    state = first(4, 30, 3)
    ran = run(tmp_path, {key: value.half() for key, value in state.items()})
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"{tmp_path / 'donor'}: llama_adapter from adapter.pth",
        "  graft: llama_adapter, 2 tensors, 2.0 kB",
        "  adapter_query.weight     -> graft query",
        "  layers.*.attention.gate  -> graft gate (4)",
    ]
    told = json.loads((tmp_path / "donor" / "graft.json").read_text())
    assert told["config"] == {
        "hidden_size": 32, "depth": 4, "heads": 4, "rows": 30, "length": 10, "gate": "tanh", "new_gate": False,
        "linears": {}, "norms": [], "visual": None,
    }  # fmt: skip
    assert told["host"] == {
        "model": "", "model_type": "llama", "hidden_size": 32, "layers": 4, "norm": "rms", "norm_eps": None,
        "embedding": None,
    }  # fmt: skip
    held = load_file(tmp_path / "donor" / "graft.safetensors")
    assert held["query"].dtype == torch.float16 and held["query"].shape == (30, 32)
    assert held["gate"].tolist()[0] == [0.0] * 4
    assert torch.equal(held["gate"][2], state["layers.2.attention.gate"].half().flatten())
    assert sorted(path.name for path in (tmp_path / "donor").iterdir()) == ["graft.json", "graft.safetensors"]


def test_the_training_checkpoint_of_version_1(tmp_path: Path) -> None:
    """It holds the whole model beside the state of its optimizer."""
    base = {
        "tok_embeddings.weight": random(9, 32), "output.weight": random(9, 32), "rope.freqs": random(4),
        "norm.weight": random(32), "layers.1.attention_norm.weight": random(32),
        "layers.0.attention.wq.weight": random(32, 32), "layers.1.feed_forward.w2.weight": random(32, 48),
    }  # fmt: skip
    ran = run(tmp_path, {"model": {**first(), **base}, "optimizer": {"state": {}}, "epoch": 4}, "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert {key: why for key, why in told["dropped"].items() if key in base} == dict.fromkeys(base, FROZEN)
    assert set(told["dropped"]) - set(base) == {"optimizer", "epoch"}
    assert set(told["went"]) == set(first())


def test_version_2_with_all_that_it_may_hold(tmp_path: Path) -> None:
    """Biases, LoRA, second gates, norms, the visual side, and CLIP and the base, which stay behind."""
    recipe_members.save("llama", tmp_path / "llm", 0)
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    state = multimodal(config)
    state |= {f"llama.layers.{i}.attention.new_gate": random(1, 1, 1, 1, seed=i) for i in range(2)}
    beside = {
        "clip.visual.class_embedding": random(12), "clip.visual.transformer.resblocks.0.ln_1.weight": random(12),
        "llama.tok_embeddings.weight": random(9, 32), "llama.layers.1.attention.wk.weight": random(16, 32),
    }  # fmt: skip
    ran = run(tmp_path, {"model": {**state, **beside}, "config": {"w_bias": True}}, "--host", tmp_path / "llm",
              "--set", f"visual_heads={HEADS}", "--json")  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert set(told["went"]) == set(state)
    assert {key: told["dropped"][key] for key in beside} == {
        "clip.visual.class_embedding": "the image encoder, which a recipe names by itself",
        "clip.visual.transformer.resblocks.0.ln_1.weight": "the image encoder, which a recipe names by itself",
        "llama.tok_embeddings.weight": FROZEN, "llama.layers.1.attention.wk.weight": FROZEN,
    }  # fmt: skip
    assert told["pieces"]["projector"] == {
        "kind": "llama_adapter", "config": {"width": 8, "hidden_size": 32}, "tensors": 0, "bytes": 0,
    }  # fmt: skip
    made = told["pieces"]["graft"]["config"]
    assert made["visual"] == {"features": 8, "width": 24, "depth": 2, "heads": HEADS, "inner": 96}
    assert (made["length"], made["new_gate"], made["norms"]) == (LENGTH, True, ["attention", "ffn", "final"])
    assert made["norm_eps"] == config["rms_norm_eps"]
    assert made["linears"]["q"] == {"in": 32, "out": 32, "rank": RANK, "bias": True}
    assert made["linears"]["k"] == {"in": 32, "out": 16, "rank": RANK, "bias": False}
    held = load_file(tmp_path / "donor" / "graft.safetensors")
    official = state["llama.layers.1.attention.lora_wk_l2.weight"]
    assert torch.equal(held["layers.1.k.up"], halves(official, 8)) and not torch.equal(held["layers.1.k.up"], official)
    assert torch.equal(held["visual.blocks.1.fc1.weight"], state["visual_blocks.1.mlp.fc1.weight"])
    assert difference(held["new_gate"], torch.stack([random(1, 1, 1, 1, seed=i).flatten()[0] for i in range(2)])) == 0
    host = json.loads((tmp_path / "donor" / "graft.json").read_text())["host"]
    assert host["model"] == "llm" and host["embedding"]["shape"][1] == 32
    assert not (tmp_path / "donor" / "projector.safetensors").exists()


EPS = ("--set", "norm_eps=1e-6", "--set", "length=3")


@pytest.mark.parametrize(
    ("state", "more", "code", "sentence"),
    [
        ({"clip_project.model.0.weight": random(4, 4)}, (), 3, "is no llama_adapter file: it holds the tensors of clipcap (fuse import clipcap)"),
        ({**first(), "lm_head.extra": random(4)}, (), 3, "tensor 'lm_head.extra' has no place in what is imported"),
        ({**first(), "layers.1.attention.gate": random(1, 3, 1, 1)}, ("--set", "length=3"), 3, "the gate of layer 1 has 3 heads, and that of layer 0 has 4"),
        ({**first(), "adapter_query.weight": random(1, 6, 32)}, (), 3, "tensor 'adapter_query.weight' has shape [1, 6, 32], which is no matrix"),
        ({**first(), "adapter_query.weight": random(6, 32) / 0}, (), 3, "tensor 'adapter_query.weight' holds numbers that are not finite"),
        ({**second(), "llama.layers.0.attention.lora_wq_l2.weight": random(32, 5)}, EPS, 3, "tensor 'llama.layers.0.attention.lora_wq_l2.weight' has shape [32, 5], and the others make it [32, 3]"),
        ({**second(), "llama.layers.1.attention.wq.bias": random(31)}, EPS, 3, "tensor 'llama.layers.1.attention.wq.bias' has shape [31], and the others make it [32]"),
        ({k: v for k, v in second().items() if "layers.0.attention.lora_wv_l1" not in k}, EPS, 3, "holds one factor of the LoRA of v in layer 0 and not the other"),
        ({**first(), "layers.0.attention.gate": random(1, 3, 1, 1), "layers.1.attention.gate": random(1, 3, 1, 1)}, ("--set", "length=3"), 3, "3 gates of a layer are not those of heads that share 32 channels"),
        ({k: random(12, 3) if "lora_wk_l2" in k else v for k, v in second().items()}, EPS, 3, "changes 12 channels of k, which are no whole heads of 8"),
        (first(), ("--set", "gate=soft"), 2, "gate is 'soft', not one of tanh, tanh_float16, raw"),
        (first(), ("--set", "heads=2"), 2, "the import of llama_adapter has no option 'heads'"),
        (multimodal(), ("--set", "visual_heads=5", "--set", "norm_eps=1e-6"), 3, "5 heads do not divide a width of 24 (--set visual_heads=N)"),
    ],
)  # fmt: skip
def test_refuses_and_writes_nothing(
    state: dict[str, torch.Tensor], more: tuple[str, ...], code: int, sentence: str, tmp_path: Path
) -> None:
    ran = run(tmp_path, state, *more)
    where = "--set" if code == 2 else str(tmp_path / "adapter.pth")
    assert ran.code == code and ran.err.startswith(f"fuse: {where}: {sentence}"), ran.err
    assert ran.err.count("\n") == 1 and not (tmp_path / "donor").exists()


def test_a_host_of_another_size_is_refused(tmp_path: Path) -> None:
    recipe_members.save("llama", tmp_path / "llm", 0)
    ran = run(tmp_path, first(3, 9, 3), "--host", tmp_path / "llm")
    assert (ran.code, ran.err) == (3, f"fuse: {tmp_path / 'llm'}: layers is 2, and the imported file was made for 3\n")
    assert not (tmp_path / "donor").exists()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (first(3, 9, 3), "has 2 layers, and the adapter was trained for 3"),
        (first(2, 6, 2, width=40), "has hidden size 32, and the adapter was trained for 40"),
        (first(2, 6, 2, heads=8), "has 4 heads, and the adapter was trained for 8"),
        (second({**TINY, "intermediate_size": 40}), "makes 16 numbers of 32 in k, and the adapter 32 of 32"),
    ],
)
def test_a_recipe_with_a_host_that_cannot_take_it(state: dict[str, torch.Tensor], reason: str, tmp_path: Path) -> None:
    recipe_members.save("llama", tmp_path / "llm", 0)
    assert run(tmp_path, state, *EPS).code == 0
    recipe = {
        "members": {"llm": {"path": "llm"}}, "language": {"method": "linear", "weights": {"llm": 1}},
        "grafts": [{"from": "donor"}],
    }  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    for verb in (("plan",), ("merge", tmp_path / "out")):
        ran = fuse_here(verb[0], tmp_path / "recipe.json", *verb[1:])
        told = f"fuse: {tmp_path / 'donor'}: llama_adapter cannot be grafted into llm: {reason}\n"
        assert (ran.code, ran.err) == (3, told)
    assert not (tmp_path / "out").exists()
