"""Fused folders in int8 and 4 bits, by bitsandbytes and torchao."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from tests import tiny_fused, tiny_vlm
from tests.test_fused_model import greedy, picture

TEXT = {**tiny_vlm.LLAMA, "hidden_size": 256, "intermediate_size": 512}
TOWER = {**tiny_vlm.CLIP, "hidden_size": 128, "intermediate_size": 256, "projection_dim": 128}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    where = tmp_path_factory.mktemp("fused")
    wide = {"text_config": TEXT, "vision_config": TOWER}
    members = {"a": tiny_vlm.build_from("llava", wide, 1), "b": tiny_vlm.build_from("llava_next", wide, 2)}
    return where, *tiny_fused.fused(members, "a", where)


def open_as(folder: Path, config: Any):
    return AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=torch.float32
    )


@pytest.mark.parametrize(
    ("config", "kind", "limit"),
    [
        (BitsAndBytesConfig(load_in_8bit=True), "Linear8bitLt", 0.05),
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32), "Linear4bit", 0.5),
    ],
)
def test_few_bits_give_nearly_the_same_logits(made, config: BitsAndBytesConfig, kind: str, limit: float) -> None:
    folder, model, processor = made
    batch = processor(images=[picture((60, 40))], text=["<image> w5 w6"])
    few = open_as(folder, config)
    kinds = {name.split(".")[0] for name, part in few.named_modules() if type(part).__name__ == kind}
    assert kinds == {"language_model", "branches"}
    with torch.no_grad():
        want, got = model(**batch).logits, few(**batch).logits
    assert 0 < (got - want).abs().max() < limit < want.abs().max()
    assert greedy(few, batch, 4).shape == (1, 4)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed (the extra `clients`)")
@torch.no_grad()
def test_int8_of_torchao_gives_nearly_the_same_logits(made) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    folder, model, processor = made
    batch = processor(images=[picture((60, 40))], text=["<image> w5 w6"])
    few = open_as(folder, TorchAoConfig(Int8WeightOnlyConfig()))
    small = {name.split(".")[0] for name, weight in few.named_parameters() if type(weight) is not torch.nn.Parameter}
    assert small == {"language_model", "branches"}
    want, got = model(**batch).logits, few(**batch).logits
    assert 0 < (got - want).abs().max() < 0.05 < want.abs().max()
    assert greedy(few, batch, 4).shape == (1, 4)
