"""What servers ask of a fused folder: blocks of images, kinds of tokens, attention of their own."""

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fuse.export.portable import sources
from tests.test_fused_model import ASK, SIZES, fused, picture

PAIR = ("a=llava", "b=internvl")  # internvl writes markers around its tokens


def asked(processor: Any, count: int, **how: Any) -> Any:
    images = [picture(size) for size in SIZES[:count]]
    return processor(images=images, text=[" ".join([processor.image_token] * count) + " " + ASK], **how)


def test_a_block_is_what_stands_in_the_prompt_for_the_image() -> None:
    _, processor = fused(*PAIR)
    ids = asked(processor, 1)["input_ids"][0].tolist()
    block, inputs = processor.block(picture(SIZES[0]))
    words = processor.tokenizer(ASK, add_special_tokens=False)["input_ids"]
    assert ids[-len(words) - len(block) :] == [*block, *words]
    batch = asked(processor, 1)
    assert inputs.keys() == {key for key in batch if key.startswith("branches.")}
    for key, value in inputs.items():
        assert torch.equal(value, batch[key][0]), key


def test_blocks_are_counted_from_sizes() -> None:
    _, processor = fused(*PAIR)
    told = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in SIZES])
    assert told["num_image_tokens"] == [len(processor.block(picture(size))[0]) for size in SIZES]
    assert told["num_image_patches"] == [1, 1, 1]
    assert "num_image_tokens" not in processor._get_num_multimodal_tokens()


def test_kinds_mark_every_token_of_a_block() -> None:
    _, processor = fused(*PAIR)
    texts = [f"{processor.image_token} {processor.image_token} {ASK}", "w5", f"w7 {processor.image_token}"]
    pictures = [[picture(SIZES[0]), picture(SIZES[1])], [], [picture(SIZES[2])]]
    batch = processor(images=pictures, text=texts, return_mm_token_type_ids=True)
    lengths = [len(processor.block(picture(size))[0]) for size in SIZES]
    kinds = batch["mm_token_type_ids"]
    assert kinds.shape == batch["input_ids"].shape
    assert kinds.sum(1).tolist() == [lengths[0] + lengths[1], 0, lengths[2]]
    assert not kinds[batch["attention_mask"] == 0].any()
    placeholders = torch.isin(batch["input_ids"], torch.tensor(processor.fused.placeholder_ids))
    assert kinds[placeholders].all()
    assert kinds.sum() > placeholders.sum()  # markers, too
    assert "mm_token_type_ids" not in asked(processor, 1)


def test_kinds_change_nothing_that_the_model_says() -> None:
    model, processor = fused(*PAIR)
    with torch.no_grad():
        plain = model(**asked(processor, 2)).logits
        told = model(**asked(processor, 2, return_mm_token_type_ids=True)).logits
        words = [
            model.generate(**asked(processor, 2, **how), max_new_tokens=4, do_sample=False)
            for how in ({}, {"return_mm_token_type_ids": True})
        ]
    assert torch.equal(plain, told)
    assert torch.equal(*words)


def test_a_portable_folder_tells_servers_the_same() -> None:
    code = sources(fused(*PAIR)[0].config.to_dict())
    for file, words in {
        "fuse_model_served.py": ("def _get_num_multimodal_tokens", "def block", "def kinds_of"),
        "processing_fuse.py": ("from .fuse_model_served import ServedMixin, kinds_of", "ServedMixin, ProcessorMixin"),
        "modeling_fuse.py": ("_supports_attention_backend = True",),
    }.items():
        for word in words:
            assert word in code[file], (file, word)


@pytest.mark.parametrize("host", ["a=llava", "b=internvl", "c=llava_onevision", "d=mistral3"])
def test_attention_of_a_server_runs_every_layer_of_the_host(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = fused(host)
    heard: list[tuple[int, Any]] = []

    def theirs(module: Any, *args: Any, **kwargs: Any) -> Any:
        heard.append((module.layer_idx, kwargs.get("attention_instances")))
        return sdpa_attention_forward(module, *args, **kwargs)

    batch = asked(processor, 1)
    before = model.get_decoder().config._attn_implementation
    with torch.no_grad():
        embeds = model.read(**batch).embeds
        plain = model(inputs_embeds=embeds).logits
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "theirs", theirs)
        try:
            model.get_decoder().set_attn_implementation("theirs")
            told = model(inputs_embeds=embeds, attention_instances="handed down").logits
        finally:
            model.get_decoder().set_attn_implementation(before)
    assert type(model)._supports_attention_backend
    assert heard == [(layer, "handed down") for layer in range(model.get_decoder().config.num_hidden_layers)]
    torch.testing.assert_close(told, plain)
