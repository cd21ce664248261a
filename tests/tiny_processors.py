"""Tiny processors for the tiny models of tests/tiny_vlm.py: real classes, word-level tokenizers, 28-pixel images."""

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_vlm import PINPOINTS, VOCAB

CLIP = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
SQUARE = {"size": {"height": 28, "width": 28}}
PIXELS = {"min_pixels": 56 * 56, "max_pixels": 4 * 56 * 56}
TILE = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}

# model_type -> (processor, image processor, its arguments, the processor's arguments, special tokens and their rows)
PROCESSORS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, int]]] = {
    "llava": (
        "LlavaProcessor", "CLIPImageProcessor", CLIP,
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {"<image>": 90},
    ),
    "llava_next": (
        "LlavaNextProcessor", "LlavaNextImageProcessor", {**CLIP, "image_grid_pinpoints": PINPOINTS},
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {"<image>": 90},
    ),
    "llava_onevision": (
        "LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor", {**SQUARE, "image_grid_pinpoints": PINPOINTS},
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"}, {"<image>": 90, "<video>": 91},
    ),
    "vipllava": (
        "LlavaProcessor", "CLIPImageProcessor", CLIP,
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {"<image>": 90},
    ),
    "internvl": (
        "InternVLProcessor", "GotOcr2ImageProcessor", {**SQUARE, "crop_to_patches": True, "max_patches": 4},
        {"image_seq_length": 1}, {"<IMG_CONTEXT>": 90, "<img>": 91, "</img>": 92, "<video>": 93},
    ),
    "idefics3": (
        "Idefics3Processor", "Idefics3ImageProcessor", TILE, {"image_seq_len": 1},
        {
            "<image>": 90, "<fake_token_around_image>": 91, "<global-img>": 92, "<end_of_utterance>": 93,
            "<row_1_col_1>": 80, "<row_1_col_2>": 81, "<row_2_col_1>": 82, "<row_2_col_2>": 83,
        },
    ),
    "smolvlm": (
        "SmolVLMProcessor", "SmolVLMImageProcessor", TILE, {"image_seq_len": 1},
        {
            "<image>": 90, "<fake_token_around_image>": 91, "<global-img>": 92, "<end_of_utterance>": 93,
            "<row_1_col_1>": 80, "<row_1_col_2>": 81, "<row_2_col_1>": 82, "<row_2_col_2>": 83,
        },
    ),
    "paligemma": ("PaliGemmaProcessor", "SiglipImageProcessor", {**SQUARE, "image_seq_length": 4}, {}, {"<image>": 90}),
    "qwen2_vl": (
        "Qwen2VLProcessor", "Qwen2VLImageProcessor", PIXELS, {},
        {"<|image_pad|>": 90, "<|video_pad|>": 91, "<|vision_start|>": 92, "<|vision_end|>": 93},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", PIXELS, {},
        {"<|image_pad|>": 90, "<|video_pad|>": 91, "<|vision_start|>": 92, "<|vision_end|>": 93},
    ),
    "mistral3": (
        "PixtralProcessor", "PixtralImageProcessor",
        {"size": {"longest_edge": 56}, "patch_size": {"height": 14, "width": 14}},
        {"patch_size": 14, "spatial_merge_size": 2}, {"[IMG]": 90, "[IMG_BREAK]": 91, "[IMG_END]": 92},
    ),
    "gemma3": (
        "Gemma3Processor", "Gemma3ImageProcessor", SQUARE, {"image_seq_length": 4},
        {"<image_soft_token>": 90, "<start_of_image>": 91, "<end_of_image>": 92},
    ),
    "aya_vision": (
        "AyaVisionProcessor", "GotOcr2ImageProcessor", {**SQUARE, "crop_to_patches": True, "max_patches": 4},
        {"patch_size": 14, "img_size": 28, "downsample_factor": 2},
        {
            "<|IMG_PATCH|>": 90, "<|START_OF_IMG|>": 91, "<|END_OF_IMG|>": 92, "<image>": 93, "TILE_GLOBAL": 80,
            "TILE": 81, **{f"TILE_{i}": 81 + i for i in range(1, 5)}, "<|IMG_LINE_BREAK|>": 86,
        },
    ),
}  # fmt: skip

_NAMED = {
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    "paligemma": {"image_token": "<image>"},
}  # fmt: skip

TEMPLATES = {
    "qwen2_vl": "<|vision_start|> <|image_pad|> <|vision_end|> ", "qwen2_5_vl":
    "<|vision_start|> <|image_pad|> <|vision_end|> ", "internvl": "<IMG_CONTEXT> ", "mistral3": "[IMG] ",
    "gemma3": "<start_of_image> ",
}  # fmt: skip


def template(model_type: str) -> str:
    """A chat template that writes images as this family does, and words as they are."""
    image = TEMPLATES.get(model_type, "<image> ")
    return (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        "{% if c.type == 'image' %}" + image + "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    )


WORDS = ["<unk>", "<s>", "</s>", "\n\n", "\n", *(f"w{i}" for i in range(5, 80))]  # what all families share


def tokenizer(model_type: str = "") -> PreTrainedTokenizerFast:
    """The shared words, and 16 added tokens: the family's special ones at their rows, the others reserved."""
    rows = {row: token for token, row in PROCESSORS[model_type][4].items()} if model_type else {}
    added = [rows.get(i, f"<|reserved_{i}|>") for i in range(len(WORDS), VOCAB)]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    inner.add_special_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        extra_special_tokens=_NAMED.get(model_type, {}),
    )  # fmt: skip


def processor(model_type: str) -> Any:
    """The tiny processor of a family."""
    name, image_name, image_arguments, arguments, _ = PROCESSORS[model_type]
    extra: dict[str, Any] = {}
    image_class = getattr(transformers, image_name)
    made = image_class(**image_arguments)
    cls = getattr(transformers, name)
    needed = cls.__init__.__code__.co_varnames[: cls.__init__.__code__.co_argcount]
    if "video_processor" in needed:
        video = VIDEO.get(model_type)
        extra["video_processor"] = getattr(transformers, video)() if video else None
    return cls(
        image_processor=made, tokenizer=tokenizer(model_type), chat_template=template(model_type), **arguments, **extra
    )


VIDEO = {
    "qwen2_vl": "Qwen2VLVideoProcessor", "qwen2_5_vl": "Qwen2VLVideoProcessor", "smolvlm": "SmolVLMVideoProcessor",
    "internvl": "InternVLVideoProcessor", "llava_onevision": "LlavaOnevisionVideoProcessor",
}  # fmt: skip


def save(model: Any, folder: Path) -> Path:
    """The tiny model with its processor and tokenizer."""
    model.save_pretrained(folder)
    processor(model.config.model_type).save_pretrained(folder)
    return folder
