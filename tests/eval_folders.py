"""Tiny loaded folders of every kind for tests of `fuse eval`: text models, native multimodal classes, fused models."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers as tf

from fuse.ask import Answerer, load
from fuse.evaluate.questions import Question
from tests import tiny_processors, tiny_text, tiny_vlm
from tests.members import save_member
from tests.test_fused_model import MIXES, SIZES, fused, picture
from tests.tiny_processors import template

TEXT = ("llama", "gpt2", "opt", "t5", "gemma2")
NATIVE = (
    "llava", "llava_next", "llava_onevision", "vipllava", "internvl", "idefics3", "smolvlm", "paligemma", "qwen2_vl",
    "qwen2_5_vl", "mistral3", "gemma3", "aya_vision", "idefics2", "qwen3_vl", "mllama", "blip-2", "blip-2 with T5",
    "instructblip", "instructblip with T5",
)  # fmt: skip
FUSED = tuple(f"fused: {name}" for name in MIXES)
BLIND, SEE_ALWAYS = set(TEXT), {"paligemma", "blip-2", "blip-2 with T5", "instructblip", "instructblip with T5"}
ONE_IMAGE = {kind for kind in SEE_ALWAYS if "blip" in kind}
SQUARE = {"size": {"height": 28, "width": 28}}


def tokenizer(special: dict[int, str], chat: str = "") -> Any:
    """The words of tests/tiny_processors.py with special tokens at given rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = tiny_processors.WORDS
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    inner.add_special_tokens([special.get(i, f"<|reserved_{i}|>") for i in range(len(words), tiny_vlm.VOCAB)])
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    if chat:
        made.chat_template = chat
    return made


def _processor(kind: str) -> Any:
    """The processors that tests/tiny_processors.py does not have."""
    if "blip" in kind:
        image = tf.BlipImageProcessor(**SQUARE)
        if kind.startswith("blip-2"):
            return tf.Blip2Processor(image, tokenizer({90: "<image>"}), num_query_tokens=4)
        return tf.InstructBlipProcessor(image, tokenizer({90: "<image>"}), tokenizer({}), num_query_tokens=4)
    if kind == "mllama":
        chat = template("llava").replace("<image>", "<|image|>")
        words = tokenizer({90: "<|image|>", 91: "<|python_tag|>"}, chat)
        return tf.MllamaProcessor(tf.MllamaImageProcessor(**SQUARE, max_image_tiles=2), words, chat_template=chat)
    if kind == "idefics2":
        words = tokenizer({90: "<image>", 91: "<fake_token_around_image>", 92: "<end_of_utterance>"})
        image = tf.Idefics2ImageProcessor(size={"longest_edge": 28, "shortest_edge": 14}, do_image_splitting=False)
        return tf.Idefics2Processor(image, words, image_seq_len=4, chat_template=template("llava"))
    rows = {90: "<|image_pad|>", 91: "<|video_pad|>", 92: "<|vision_start|>", 93: "<|vision_end|>"}
    image = tf.Qwen2VLImageProcessor(patch_size=16, min_pixels=64 * 64, max_pixels=4 * 64 * 64)
    chat = template("qwen2_vl")
    return tf.Qwen3VLProcessor(image, tokenizer(rows), tf.Qwen3VLVideoProcessor(), chat_template=chat)


@cache
def answerer(kind: str) -> Answerer:
    """A loaded folder of a kind: one of TEXT, NATIVE or FUSED."""
    if kind in FUSED:
        model, ours = fused(*MIXES[kind.removeprefix("fused: ")])
        return Answerer(Path(kind), model, ours.tokenizer, ours)
    with TemporaryDirectory() as folder:
        where = Path(folder)
        if kind in TEXT:
            # transformers sizes T5's cache by its encoder
            changes = {"t5": {"num_decoder_layers": 2}, "gpt2": {"bos_token_id": 1, "eos_token_id": 2}}
            save_member(tiny_text.build(kind, **changes.get(kind, {})), where)
        elif kind in tiny_processors.PROCESSORS:
            tiny_processors.save(tiny_vlm.build(kind, 1), where)
        else:
            tiny_vlm.build(kind, 1).save_pretrained(where)
            _processor(kind).save_pretrained(where)
        return load(where)


def questions(kind: str, folder: Path, count: int = 9, choices: Sequence[str] = ()) -> list[Question]:
    """Questions of different length, about no image, one or two of different sizes, as far as the kind takes them."""
    made = []
    for i in range(count):
        images = 0 if kind in BLIND else 1 if kind in ONE_IMAGE else (1, 1, 2, 0)[i % 4]
        files = []
        for number in range(max(images, int(kind in SEE_ALWAYS))):
            files.append(folder / f"{i}-{number}.png")
            picture(SIZES[(i + number) % 3], 10 * i + number).save(files[-1])
        text = " ".join(f"w{5 + (7 * i + 3 * j) % 55}" for j in range(1 + i % 5))
        right = choices[i % len(choices)] if choices else f"w{6 + i} w{50 - i} w9"
        made.append(Question(i + 1, str(i + 1), text, tuple(files), (right,), tuple(choices), "all",
                             "choice" if choices else "exact", f"data.jsonl:{i + 1}"))  # fmt: skip
    return made
