"""Recipes with `fold: true` and tiny parts for them: what is merged, loaded and held against the grafts unfolded."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

import fuse  # noqa: F401 - makes the Auto classes know fused folders
from fuse.grafts.lora_names import depth, sizes, stacks
from tests import tiny_grafts, tiny_processors, tiny_text, tiny_vlm
from tests.cli import Ran, fuse_here
from tests.members import perturbed

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
HEAD = "members: {one: @one, two: @two}\nlanguage: {method: linear, weights: {one: 0.5, two: 0.5}}\n"


def members(folder: Path, kind: str, **settings: Any) -> dict[str, Any]:
    """Two fine-tunes of one tiny model, called `one` and `two`; their config."""
    model = tiny_text.build(kind, **settings)
    for seed, name in enumerate(("one", "two")):
        perturbed(model, seed).save_pretrained(folder / name)
        tiny_processors.tokenizer().save_pretrained(folder / name)
    return model.config.to_dict()


def lora(config: dict[str, Any], *linears: str) -> dict[str, Any]:
    """LoRA of some projections in every block, each with a rank and a scaling of its own."""
    host = tiny_grafts.basis_of(config)
    stack = next(iter(stacks(host)))
    modules = {}
    for layer in range(depth(host, stack)):
        for number, name in enumerate(linears):
            given, gives = sizes(host, name)
            row = {"rank": 1 + number, "in": given, "out": gives, "scaling": 0.5 + number / 4}
            modules[f"{stack}.{layer}.{name}"] = row
    return {"modules": modules}


def run(verb: str, parts: Path, folder: Path, grafts: str, out: str = "out", head: str = HEAD, more: str = "") -> Ran:
    """Plan or merge a recipe; `@` is the folder of its parts. grafts: flow entries. more: of `output`."""
    text = f"{head}grafts: [{grafts}]\noutput: {{{more or 'dtype: float32'}}}\n".replace("@", f"{parts}/")
    (folder / f"{out}.yaml").write_text(text)
    return fuse_here(verb, folder / f"{out}.yaml", *([folder / out] if verb == "merge" else []))


def load(folder: Path) -> Any:
    """The model of whichever class the folder is of, every weight found."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto: Any = {"fuse": AutoModelForImageTextToText, "llava": AutoModelForImageTextToText, "t5": AutoModelForSeq2SeqLM}
    auto = auto.get(kind, AutoModelForCausalLM)
    model, report = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS[:, :4]} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more).logits


def merged(parts: Path, folder: Path, grafts: str, out: str, **how: str) -> Any:
    """The model of a recipe."""
    ran = run("merge", parts, folder, grafts, out, **how)
    assert (ran.code, ran.err) == (0, ""), ran
    return load(folder / out)


def compare(parts: Path, folder: Path, grafts: str, **how: str) -> tuple[Any, Any]:
    """The model with grafts heard and that with grafts folded, after a look at their logits, which agree.

    grafts: flow entries with `fold: FOLD`.
    """
    heard, folded = (
        merged(parts, folder, grafts.replace("FOLD", fold), out, **how)
        for out, fold in (("heard", "false"), ("folded", "true"))
    )
    wanted = logits(heard)
    assert (logits(folded) - wanted).abs().max() < 1e-5
    for graft in heard.config.grafts:
        heard.set_scale(graft["name"], 0.0)
        assert (logits(heard) - wanted).abs().max() > 1e-3, graft["name"]
        heard.set_scale(graft["name"], 1.0)
    return heard, folded


def furnish(folder: Path) -> Path:
    """Two tiny llamas, a tiny LLaVA, and donors of every kind that fit them."""
    config = members(folder, "llama")
    for kind in tiny_grafts.CONFIGS:
        tiny_grafts.donor(folder / kind, kind, config)
    tiny_grafts.donor(folder / "wide_lora", "lora", config, **lora(config, "q", "v", "gate", "up", "down"))
    tiny_grafts.donor(folder / "instead", "mks2", config, router="none", place="instead", layers=[1])
    tiny_grafts.donor(folder / "normed_lion", "lion", config, adapter_norm="out")
    tiny_processors.save(tiny_vlm.build("llava"), folder / "vlm")
    text = json.loads((folder / "vlm" / "config.json").read_text())["text_config"]
    tower = {"width": tiny_vlm.TOWER["hidden_size"], "layers": 2, "adapter_dim": 4, "groups": 2}
    tower |= {"visual_adapter_type": "router", "route": "per_image"}
    tiny_grafts.donor(folder / "seeing_lavin", "lavin", text, tower=tower)
    tiny_grafts.donor(folder / "vlm_lora", "lora", text, **lora(text, "q", "down"))
    tiny_grafts.donor(folder / "vlm_mks2", "mks2", text)
    return folder
