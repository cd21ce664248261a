"""Inside the language model: the hidden states of an image's visual tokens behind every block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fuse.align.features.blocks import blocks_of
from fuse.ask import Answerer, inputs_of, load, pad_of
from fuse.errors import CheckpointError, RecipeError
from fuse.evaluate.batches import BY_TOKEN, joined
from fuse.model.visual import VARIABLE

PROMPT = "Describe the image."
STACKS = ("layers", "h", "block", "decoder.layers")


@torch.inference_mode()
def language_states(
    folder: Path,
    files: Sequence[Path],
    texts: Sequence[str],
    *,
    batch: int,
    done: Callable[[int], None],
    device: str = "cpu",
) -> dict[str, torch.Tensor]:
    """The mean hidden state of an image's visual tokens behind each block: [blocks, images, D] float32, on the CPU.

    By branch in a fused folder, and under "" in any other. files: images that can be read. texts: what is asked, the
    first of the first image, and over again when they end. The whole prompt is read once a image, without an answer.
    done: gets the number of images behind each batch. Raises what `fuse.ask.load` raises, RecipeError where the
    folder's processor refuses a question, and CheckpointError for a language model whose blocks are not known.
    """
    answerer = load(folder, device=device, images=files)
    place = answerer.model.device
    fill, tokens = pad_of(answerer.tokenizer) or 0, _placeholders(answerer)
    blocks = _blocks(answerer.model, folder)
    found = {name: [[torch.empty(0)] * len(files) for _ in blocks] for name in tokens}
    waiting: dict[Any, list[tuple[int, Mapping[str, Any]]]] = {}

    def run(some: list[tuple[int, Mapping[str, Any]]]) -> None:
        inputs = {
            name: [one.to(place) for one in value] if isinstance(value, list) else value.to(place)
            for name, value in joined([row for _, row in some], fill).items()
        }
        masks = _masks(answerer, inputs, tokens)
        with _meaning(blocks, masks, folder) as means:
            answerer.model(**inputs, **_asks_little(answerer.model, len(some)))
        for name, states in means.items():
            for block, state in enumerate(states[-len(blocks) :]):  # a graft may have read the prompt before
                for (number, _), row in zip(some, state, strict=True):
                    found[name][block][number] = row
        done(len(some))

    for number, file in enumerate(files):
        row = _row(answerer, texts[number % len(texts)], file)
        key = _shape(row)
        waiting.setdefault(key, []).append((number, row))
        if len(waiting[key]) == batch:
            run(waiting.pop(key))
    for some in waiting.values():
        run(some)
    return {name: torch.stack([torch.stack(rows) for rows in layers]) for name, layers in found.items()}


def _row(answerer: Answerer, text: str, file: Path) -> dict[str, Any]:
    try:
        row = dict(inputs_of(answerer, text, (file,)))
    except (ValueError, IndexError, StopIteration) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"the processor of {answerer.folder} refuses it: {told}", where=file) from None
    row.pop("labels", None)
    row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
    return row


def _shape(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(
        (key, value.shape[1:] if key not in BY_TOKEN else (), value.dtype)
        for key, value in sorted(row.items()) if not isinstance(value, list)
    )  # fmt: skip


def _placeholders(answerer: Answerer) -> dict[str, int]:
    """The id at which visual tokens stand, by branch."""
    config = answerer.model.config
    if config.model_type == "fuse":
        return {branch["name"]: branch["token_id"] for branch in config.branches}
    found = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if found is None:
        found = getattr(answerer.processor, "image_token_id", None)
    if found is None:
        raise CheckpointError("config.json names no image token", where=answerer.folder)
    return {"": found}


def _masks(answerer: Answerer, inputs: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Where each branch's visual tokens stand: [B, L] bool."""
    ids = inputs["input_ids"]
    masks = {name: ids == token for name, token in tokens.items()}
    branches = getattr(answerer.model.config, "branches", ())
    if any(branch["kind"] in VARIABLE for branch in branches):  # gives fewer tokens than it has places
        prompt = answerer.model.read(**inputs)
        masks = {name: mask & (prompt.attention_mask != 0) for name, mask in masks.items()}
    return masks


def _asks_little(model: Any, rows: int) -> dict[str, Any]:
    """Arguments that spare what is not looked at: the cache and the logits of the prompt."""
    config = model.config
    if config.is_encoder_decoder or getattr(config.get_text_config(), "is_encoder_decoder", False):
        start = config.get_text_config().decoder_start_token_id or 0
        return {"decoder_input_ids": torch.full((rows, 1), start, device=model.device)}
    return {"use_cache": False, "logits_to_keep": 1}


def _blocks(model: Any, folder: Path) -> list[nn.Module]:
    """The blocks that read the prompt, in order: an encoder-decoder's are its encoder's."""
    config = model.config.get_text_config()
    apart = getattr(config, "is_encoder_decoder", False)
    inner = getattr(model, "language_model", None) or model
    reader: Any = inner.get_encoder() if apart else model.get_decoder()
    for name in STACKS:
        found: Any = reader
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return list(found)
    if blocks := blocks_of(reader):
        return blocks
    raise CheckpointError(f"the blocks of a {type(reader).__name__} are not known here", where=folder)


@contextmanager
def _meaning(
    blocks: Sequence[nn.Module], masks: Mapping[str, torch.Tensor], folder: Path
) -> Iterator[dict[str, list[torch.Tensor]]]:
    """The mean of what each block gives over each mask's tokens, [B, D] a block, taken as blocks run."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in masks}

    def keep(_module: nn.Module, _args: Any, out: Any) -> None:
        states = (out[0] if isinstance(out, tuple | list) else out).float()
        for name, mask in masks.items():
            if mask.shape != states.shape[:2]:
                told = f"its language model reads {states.shape[1]} tokens where the prompt has {mask.shape[1]}"
                raise CheckpointError(told, where=folder)
            weights = mask.float() / mask.sum(1, keepdim=True).clamp(min=1)
            found[name].append(torch.einsum("bl,bld->bd", weights, states).cpu())

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
