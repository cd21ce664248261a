"""The fused model on tiny members of every native family, against the members' own classes."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from fuse.errors import RecipeError
from tests import tiny_fused, tiny_processors, tiny_vlm

TYPES = list(tiny_processors.PROCESSORS)
SIZES = [(60, 40), (40, 60), (30, 30)]
ROWS = tiny_vlm.VOCAB
ASK = "w5 w6 w7"


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@cache
def own(model_type: str, seed: int) -> tuple[Any, Any]:
    """A member and its processor, as its own classes load them."""
    model = tiny_vlm.build(model_type, seed)
    with TemporaryDirectory() as folder:
        tiny_processors.save(model, Path(folder))
        return model, AutoProcessor.from_pretrained(folder)


@cache
def fused(*members: str, host: str = "", **budgets: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    """A fused model of `name=model_type:seed` members; the first is the host where none is named."""
    models = {}
    for member in members:
        name, _, given = member.partition("=")
        model_type, _, seed = given.partition(":")
        models[name] = own(model_type, int(seed or 1))[0]
    with TemporaryDirectory() as folder:
        return tiny_fused.fused(
            models, host or next(iter(models)), Path(folder), {name: dict(given) for name, given in budgets.items()}
        )


def prompt(processor: Any, images: int, words: str = ASK) -> str:
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": words}]
    return processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)


def greedy(model: Any, batch: Any, tokens: int = 32, **how: Any) -> torch.Tensor:
    config = getattr(model.config, "placeholder_ids", None)
    start = batch["input_ids"].shape[1]
    with torch.no_grad():
        out = model.generate(
            **batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=2,
            suppress_tokens=config, **how,
        )  # fmt: skip
    return out[:, start:]


def by_hand(processor: Any, model_type: str, image: Image.Image) -> tuple[Any, str]:
    """What a member's own processor makes of one image and a question, and the same prompt for the fused one."""
    text = prompt(processor, 1)
    batch = processor(images=[image], text=[text], return_tensors="pt")
    batch.pop("labels", None)
    # PaliGemma's processor writes the beginning and the end of the prompt itself.
    return batch, "<image> <s> " + ASK + " \n" if model_type.startswith("paligemma") else text


@pytest.mark.parametrize("model_type", [*TYPES, "paligemma with Gemma 2"])
def test_one_branch_gives_the_members_own_logits_and_words(model_type: str) -> None:
    member, processor = own(model_type, 1)
    model, ours = fused(f"a={model_type}:1")
    for size in SIZES:
        batch, text = by_hand(processor, model_type, picture(size))
        mine = ours(images=[picture(size)], text=[text])
        assert mine["input_ids"].shape == batch["input_ids"].shape
        with torch.no_grad():
            want, got = member(**batch).logits, model(**mine).logits
        assert (got[..., :ROWS] - want).abs().max() < 1e-5
    assert greedy(model, mine).tolist() == greedy(member, batch).tolist()


@pytest.mark.parametrize("model_type", TYPES)
def test_two_branches_are_the_members_tokens_one_after_another(model_type: str) -> None:
    model, ours = fused(f"a={model_type}:1", f"b={model_type}:2")
    _, text = by_hand(own(model_type, 1)[1], model_type, picture(SIZES[0]))
    mine = ours(images=[picture(SIZES[0])], text=[text])
    with torch.no_grad():
        got = model.get_image_features(**mine)
        want = torch.cat([features(model_type, seed, picture(SIZES[0])) for seed in (1, 2)])
    assert got.shape == want.shape
    assert (got - want).abs().max() < 1e-6
    order = [int(i) for i in mine["input_ids"][0] if int(i) in model.config.placeholder_ids]
    assert order == sorted(order), "all of a's tokens stand before b's"


def features(model_type: str, seed: int, image: Image.Image) -> torch.Tensor:
    """A member's own visual tokens [n, D] of an image."""
    member, processor = own(model_type, seed)
    batch = processor(images=[image], text=[prompt(processor, 1)], return_tensors="pt")
    names = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask", "batch_num_images")
    found = member.get_image_features(**{k: batch[k] for k in names if k in batch}, return_dict=True).pooler_output
    found = list(found) if isinstance(found, list | tuple) else [found]
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in found])


MIXES = {
    "llama": ("a=llava:1", "b=llava_next:2", "c=vipllava:3", "d=idefics3:4", "e=smolvlm:5"),
    "M-RoPE host": ("a=qwen2_vl:1", "b=llava_onevision:2"),
    "M-RoPE guest": ("a=llava_onevision:1", "b=qwen2_vl:2", "c=internvl:3"),
    "prefix host": ("a=paligemma:1", "b=llava:2"),
    "prefix host with sliding layers": ("a=paligemma with Gemma 2:1", "b=llava_next:2"),
    "block host": ("a=gemma3:1", "b=llava:2"),
    "two of M-RoPE": ("a=qwen2_5_vl:1", "b=qwen2_vl:2"),
}


@pytest.mark.parametrize("mix", MIXES)
def test_batches_caches_and_padding_change_nothing(mix: str) -> None:
    """Rows of different lengths, several images, several turns: one by one, in a batch, with and without a cache."""
    model, ours = fused(*MIXES[mix])
    token = ours.image_token
    texts = [f"{token} w5 w6", f"w8 {token} w9 {token} w5 w6 w7 w10 </s> w11 w12", f"w5 w6 w7 {token}", "w5 w6 w20"]
    images = [[picture((60, 40), 1)], [picture((30, 30), 2), picture((40, 60), 3)], [picture((28, 28), 4)], []]
    together = ours(images=images, text=texts)
    with torch.no_grad():
        rows = model(**together).logits
    words = greedy(model, together, repetition_penalty=1.3)
    uncached = greedy(model, together, repetition_penalty=1.3, use_cache=False)
    assert words.tolist() == uncached.tolist()
    for number, (text, some) in enumerate(zip(texts, images, strict=True)):
        alone = ours(images=[some], text=[text])
        with torch.no_grad():
            want = model(**alone).logits[0]
        assert (rows[number, -len(want) :] - want).abs().max() < 1e-4
        assert greedy(model, alone, repetition_penalty=1.3)[0].tolist() == words[number].tolist()


def test_wrong_counts_are_refused_in_a_sentence() -> None:
    model, ours = fused("a=llava:1", "b=llava_next:2")
    batch = ours(images=[picture((60, 40))], text=["<image> w5"])
    batch["input_ids"] = batch["input_ids"][:, 1:]
    batch["attention_mask"] = batch["attention_mask"][:, 1:]
    with pytest.raises(RecipeError, match="the prompt has 3 placeholders of branch 'a' and its 1 images have 4 tokens"):
        model(**batch)
