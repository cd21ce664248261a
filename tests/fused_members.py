"""Tiny members for tests of fused recipes: one vocabulary of 80 words, and special tokens behind it at rows of one's own."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny_processors, tiny_vlm
from tests.members import perturbed

CORE = 80
WORDS = ["<unk>", "<s>", "</s>", "\n\n", "\n", *(f"w{i}" for i in range(5, CORE))]
# special tokens in the order of their rows, from CORE on; the first is the image placeholder of the config
SPECIAL = {
    "llava": ["<image>"], "llava_next": ["<image>"], "llava_onevision": ["<image>", "<video>"],
    "internvl": ["<IMG_CONTEXT>", "<img>", "</img>", "<video>"],
    "idefics3": [
        "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>", "<row_1_col_2>",
        "<row_2_col_1>", "<row_2_col_2>",
    ],
    "paligemma": ["<image>"], "gemma3": ["<image_soft_token>", "<start_of_image>", "<end_of_image>"],
    "qwen2_vl": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"],
}  # fmt: skip


def tokenizer(special: list[str], template: str = "", roles: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """The words, the special tokens behind them, and which of these a processor asks for by role."""
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    inner.add_special_tokens(special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=roles or {},
    )
    if template:
        made.chat_template = template
    return made


def save(
    kind: str, folder: Path, seed: int = 1, changes: dict[str, Any] | None = None, base: int = 0, template: str = ""
) -> Path:  # fmt: skip
    """A tiny member with its processor, whose placeholder is at row CORE. base: another member's seed to start from."""
    given = tiny_vlm.CONFIGS[kind]
    key = "image_token_id" if "image_token_id" in given else "image_token_index"
    model = tiny_vlm.build_from(kind, {key: CORE, **_ids(kind), **(changes or {})}, base or seed)
    perturbed(model, seed).save_pretrained(folder)
    name, image_name, image_arguments, arguments, _ = tiny_processors.PROCESSORS[kind]
    special = SPECIAL[kind]
    text = tokenizer(special, template or tiny_processors.template(kind), tiny_processors._NAMED.get(kind))
    image = getattr(transformers, image_name)(**image_arguments)
    video = tiny_processors.VIDEO.get(kind)
    extra = {"video_processor": getattr(transformers, video)()} if video else {}
    made = getattr(transformers, name)(image_processor=image, tokenizer=text, **arguments, **extra)
    made.chat_template = text.chat_template
    made.save_pretrained(folder)
    assert text.convert_tokens_to_ids(special) == list(range(CORE, CORE + len(special)))
    return folder


def _ids(kind: str) -> dict[str, int]:
    """The other special rows that a config names."""
    if kind == "qwen2_vl":
        return {"video_token_id": 81, "vision_start_token_id": 82, "vision_end_token_id": 83}
    return {"gemma3": {"boi_token_index": 81, "eoi_token_index": 82}, "llava_onevision": {"video_token_index": 81}}.get(
        kind, {}
    )


def save_llm(folder: Path, seed: int = 3, special: list[str] | None = None, template: str = "") -> Path:
    """A text-only LLaMA of the same base."""
    torch.manual_seed(seed)
    settings = {k: v for k, v in tiny_vlm.GROUPED.items() if k != "pad_token_id"}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).save_pretrained(folder)
    tokenizer(special or [], template).save_pretrained(folder)
    return folder
