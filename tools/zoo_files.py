"""Writes the zoo's models as ordinary folders: bf16 safetensors, tokenizer, processor, chat template, a card."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import nn
from zoo_base import ROWS
from zoo_text import BEGIN, SPECIAL
from zoo_tower import Sight
from zoo_world import UNKNOWN, VOCABULARY

from fuse import torchvision_shim

torchvision_shim.install()
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast  # noqa: E402

TEMPLATE = (
    "<s>{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}</s>{% else %}<q>"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}<a>"
    "{% endif %}{% endfor %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the zoo; others are <unk>."""
    words = {word: number for number, word in enumerate([*VOCABULARY, UNKNOWN])}
    inner = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (*SPECIAL, UNKNOWN)])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token=UNKNOWN,
        model_max_length=1024, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def processor(sight: Sight) -> LlavaProcessor:
    images = CLIPImageProcessor(
        size={"height": sight.side, "width": sight.side},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer(), patch_size=sight.patch, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def write(model: nn.Module, folder: Path, card: str, sight: Sight | None = None) -> None:
    """The model in bf16 as a folder that the Auto classes load."""
    assert len(VOCABULARY) < ROWS
    model.to(torch.bfloat16).save_pretrained(folder)
    (processor(sight) if sight else tokenizer()).save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
