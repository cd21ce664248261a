"""Tiny hosts in several bases with donors cut from one of them, and what is merged of them over bridges."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import fuse  # noqa: F401 - makes the Auto classes know the folder
from tests import recipe_members, tiny_grafts, tiny_lmeye
from tests.cli import Ran, fuse_here
from tests.members import TEMPLATE, save_member
from tests.original_branches import picture
from tests.rotated_hosts import WIDTH, build, turned
from tests.rotated_hosts import turn as orthogonal
from tests.test_bridge import IDS, TEXTS
from tests.test_fused_bridges import record

BRIDGE = {"method": "procrustes", "texts": "texts.txt", "host": "own"}
PICTURE = picture(60, 40)
HOSTS: dict[str, dict[str, Any]] = {
    "wide": {"hidden_size": 48, "num_hidden_layers": 3}, "narrow": {"hidden_size": 16, "head_dim": 8},
}  # fmt: skip


def furnish(folder: Path) -> Path:
    """A language model, the same in other axes, others of other sizes, and donors cut from the first."""
    save_member(build(), folder / "own", template=TEMPLATE)
    save_member(turned("llama", orthogonal(WIDTH)), folder / "turned", template=TEMPLATE)
    save_member(build(seed=5), folder / "other", template=TEMPLATE)
    for name, sizes in HOSTS.items():
        save_member(build(seed=7, **sizes), folder / name, template=TEMPLATE)
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    host = json.loads((folder / "own" / "config.json").read_text())
    tiny_grafts.donor(folder / "single", "lion", host, adapters=1)
    tiny_grafts.donor(folder / "number", "lion", host, adapters=1, adapter_scale=0.7, hint=False)
    tiny_grafts.donor(folder / "routed", "lion", host)
    tiny_grafts.donor(folder / "normed", "lion", host, adapters=1, adapter_norm="in")
    tiny_grafts.donor(folder / "prompts", "llama_adapter", host)
    tiny_grafts.donor(folder / "memory", "mks2", host)
    tiny_lmeye.write_donor(folder / "eyes", host)
    recipe_members.save_encoder(folder / "clip")
    linear(folder / "linear", (24, 12), (WIDTH, 24))
    linear(folder / "bare", (WIDTH, 12), bias=False)
    for name in ("single", "number", "routed", "normed", "prompts", "memory", "eyes"):
        owned(folder / name / "graft.json", folder / "own")
    owned(folder / "eyes" / "projector.json", folder / "own")
    return folder


def linear(folder: Path, *sizes: tuple[int, int], bias: bool = True) -> None:
    """A projector folder of linear layers [out, in], which says nothing of its host."""
    folder.mkdir()
    tensors = {f"{2 * i}.weight": torch.randn(size, generator=seeded(i)) * 0.2 for i, size in enumerate(sizes)}
    if bias:
        tensors |= {f"{2 * i}.bias": torch.randn(size[0], generator=seeded(9)) for i, size in enumerate(sizes)}
    save_file(tensors, folder / "projector.safetensors")
    (folder / "projector.json").write_text(json.dumps({"format": 1, "kind": "linear", "config": {}, "host": {}}))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def owned(file: Path, host: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "host": record(host)}))


def run(folder: Path, verb: str, name: str, host: str, **more: Any) -> Ran:
    recipe = {
        "members": {host: host}, "language": {"method": "linear", "weights": {host: 1}},
        "output": {"dtype": "float32"}, **more,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    return fuse_here(verb, folder / f"{name}.yaml", *([folder / name, "--quiet"] if verb == "merge" else []))


def opened(folder: Path) -> Any:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert {k: list(v) for k, v in report.items() if v} == {}
    return model.eval()


def logits(folder: Path, hinted: bool = False) -> torch.Tensor:
    """Of words alone, where the output has no eyes; else of a question about a picture. hinted: LION's hint is among
    the words."""
    model = opened(folder)
    ids = IDS.clone()
    if hinted:
        ids[0, 3] = model.config.grafts[0]["token_ids"]["hint"]
    given: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.branches:
        processor = AutoProcessor.from_pretrained(folder)
        given = processor(images=[PICTURE], text=["<image> w5 w6 w7"], return_tensors="pt")
    with torch.no_grad():
        return model(**given).logits


def seen(folder: Path) -> torch.Tensor:
    """The visual tokens of the picture."""
    model, processor = opened(folder), AutoProcessor.from_pretrained(folder)
    batch = processor(images=[PICTURE], text=["<image> w5 w6"], return_tensors="pt")
    with torch.no_grad():
        prompt = model.read(**batch)
    return prompt.embeds[batch["input_ids"] == model.config.branches[0]["token_id"]]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def bridges(folder: Path) -> list[str]:
    return [name for name in stored(folder) if ".bridge." in name]


def same(found: torch.Tensor, wanted: torch.Tensor, within: float = 1e-5) -> bool:
    return bool((found - wanted).abs().max() <= within * wanted.abs().max().clamp(min=1))


METHODS: dict[str, dict[str, Any]] = {
    "embedding": {"method": "embedding", "host": "own"}, "procrustes": BRIDGE, "ridge": {**BRIDGE, "method": "ridge"},
}  # fmt: skip
