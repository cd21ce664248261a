"""LaVIN's checkpoints of the authors' numbers: imported, merged, loaded, and run as the fused model runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from fuse.ask import load
from tests import tiny_lavin, tiny_processors, tiny_text
from tests.cli import fuse_forked, fuse_here
from tests.original_branches import difference, golden
from tests.test_lavin import clip, llama, part, through

FIRST = 20  # the row of the host's embedding that is the golden's first word
PREPARE = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": {"height": 8, "width": 8}}


def made(folder: Path, model: Any, state: dict[str, torch.Tensor], encoder: Any, **graft: Any) -> Any:
    """The fused model of a LLaMA, a CLIP and a LaVIN checkpoint with these tensors, loaded from the merged folder."""
    model.save_pretrained(folder / "llm")
    tiny_processors.tokenizer().save_pretrained(folder / "llm")
    encoder.save_pretrained(folder / "clip")
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(PREPARE))
    told = fuse_forked("import", "lavin", tiny_lavin.saved(folder / "lavin.pth", state), folder / "lavin")
    assert told.code == 0, told.err
    recipe = {
        "members": {"llm": {"path": "llm"}}, "language": {"method": "linear", "weights": {"llm": 1}},
        "vision": [{"name": "clip", "encoder": "clip", "projector": "lavin"}],
        "grafts": [{"from": "lavin", **graft}], "output": {"dtype": "float32"},
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(recipe))
    ran = fuse_here("merge", folder / "recipe.json", folder / "out")
    assert (ran.code, ran.err) == (0, ""), ran
    return load(folder / "out").model


def last_of(model: Any, kind: str) -> nn.Module:
    return [module for module in model.modules() if type(module).__name__ == kind][-1]


@pytest.mark.parametrize(
    ("scope", "tower", "rounding", "wanted"),
    [("attn", "normal", "float16", "h"), ("attn", "normal", "none", "h_fp32_route"), ("block", "router", "float16", "h")],
)  # fmt: skip
@torch.no_grad()
def test_blocks_of_both_models(tmp_path: Path, scope: str, tower: str, rounding: str, wanted: str) -> None:
    """The words stand in the host's embedding, the modality tokens in the checkpoint; row 0 is text, row 1 an image."""
    tensors, facts = golden(f"lavin_llama_blocks_{scope}")
    seen, told = golden(f"lavin_clip_block_{tower}")
    words, host = tensors["input.h"][:, 1:], llama(tensors)
    host.resize_token_embeddings(64)
    host.get_input_embeddings().weight[FIRST : FIRST + 12] = words.flatten(0, 1)
    state = {key: tensor for key, tensor in part(tensors, "param.").items() if ".adapter_" in key}
    state["adapter_modality_embedding.weight"] = tensors["input.h"][:, 0]
    for key, tensor in part(seen, "param.resblocks.").items():
        if ".adapter_" in key:
            state[tiny_lavin.TOWER + key] = tensor
    official = tiny_lavin.official(width=32, deep=0)
    state |= {key: tensor for key, tensor in official.items() if key.startswith("adapter_proj.conv_B")}
    state |= {"adapter_proj.conv_A.weight": torch.randn(6, 16), "adapter_proj.conv_A.bias": torch.randn(6)}
    options = {"route": "official"} if tower == "router" else {}
    model = made(tmp_path, host, state, clip(seen), tower="clip", rounding=rounding, **options)
    found: list[torch.Tensor] = []
    last_of(model.language_model, "LlamaDecoderLayer").register_forward_hook(lambda _, __, out: found.append(out))
    for row, modality in enumerate(("text", "image")):
        ids = torch.arange(FIRST + 6 * row, FIRST + 6 * row + 6)[None]
        model(input_ids=ids, attention_mask=torch.ones_like(ids), grafts={"lavin": {"modality": modality}})
        assert difference(found[-1][0], tensors[f"output.{wanted}"][row, 1:]) <= float(facts["tolerance"])
    block = last_of(model.branches["clip"], "CLIPEncoderLayer")
    assert difference(through(block, seen["input.x"]), seen["output.y"]) <= float(told["tolerance"])


@torch.no_grad()
def test_the_projector_of_a_branch(tmp_path: Path) -> None:
    tensors, facts = golden("lavin_adapter_mlp")
    state = tiny_lavin.official(width=16, deep=0)
    state |= {f"adapter_proj.{key}": tensor for key, tensor in part(tensors, "param.").items()}
    shape = CLIPVisionConfig(
        hidden_size=10, intermediate_size=20, num_hidden_layers=24, num_attention_heads=2, image_size=8, patch_size=4
    )
    encoder = CLIPVisionModel(shape)
    model = made(tmp_path, tiny_text.build("llama", hidden_size=16), state, encoder, parts="language")
    projector = last_of(model.branches["clip"], "LavinProjector")
    assert difference(projector(tensors["input.x"]), tensors["output.y"]) <= float(facts["tolerance"])
