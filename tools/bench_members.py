"""Writes a LLaVA-1.5 and a LLaVA-NeXT of any size with random weights, for tools/bench_fused.py."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from fuse.errors import MachineError

SHARD = 2 << 30  # bytes of weights in one file, and in memory while a member is written
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %} {% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class Size:
    """A language model and a CLIP tower: (hidden, intermediate, layers, heads); the tower's picture and patch, the
    embedding's rows (the last 64 are no words), and the picture that is asked about."""

    text: tuple[int, int, int, int]
    vision: tuple[int, int, int, int]
    side: int
    patch: int
    rows: int
    image: tuple[int, int]


SIZES = {
    "tiny": Size((32, 64, 2, 4), (32, 64, 3, 4), 28, 14, 128, (60, 40)),
    "small": Size((512, 1376, 8, 8), (256, 1024, 6, 4), 224, 32, 2112, (640, 480)),
    "7b": Size((4096, 11008, 32, 32), (1024, 4096, 24, 16), 336, 14, 32064, (1280, 960)),
}
WHAT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # LLaVA-NeXT's, in tiles


def config_of(size: Size, model_type: str, dtype: torch.dtype) -> Any:
    """The config of a `llava` or a `llava_next`."""
    text = {"model_type": "llama", "vocab_size": size.rows, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    vision = {"model_type": "clip_vision_model", "image_size": size.side, "patch_size": size.patch}
    return transformers.AutoConfig.for_model(
        model_type, image_token_index=size.rows - 64, dtype=dtype, **grids(size, model_type),
        text_config={**text, **dict(zip(WHAT, size.text, strict=True))},
        vision_config={**vision, **dict(zip(WHAT, size.vision, strict=True))},
    )  # fmt: skip


def grids(size: Size, model_type: str) -> dict[str, Any]:
    if model_type != "llava_next":
        return {}
    return {"image_grid_pinpoints": [[high * size.side, wide * size.side] for high, wide in GRIDS]}


def write_member(size: Size, model_type: str, folder: Path, dtype: torch.dtype, device: str) -> None:
    """A folder as `save_pretrained` writes it, weights drawn shard by shard. One that is complete stays as it is."""
    if (folder / "config.json").exists():
        return
    config = config_of(size, model_type, dtype)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    config.architectures = [type(model).__name__]
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    shards: list[list[str]] = [[]]
    total, room = 0, SHARD
    for name, shape in shapes.items():
        nbytes = shape.numel() * dtype.itemsize
        total, room = total + nbytes, room - nbytes
        if room < 0:
            shards, room = [*shards, []], SHARD - nbytes
        shards[-1].append(name)
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < total:
        raise MachineError(f"a member takes {total / 1e9:.0f} GB, and less is free", where=folder)
    generator = torch.Generator(device).manual_seed(len(model_type))
    files = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files |= dict.fromkeys(names, file)
        save_file({n: weight(n, shapes[n], dtype, generator) for n in names}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    processor(size, model_type).save_pretrained(folder)
    config.save_pretrained(folder)


def weight(name: str, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Norms are ones, biases zeros, all else is drawn with a deviation of 0.02."""
    drawn = torch.empty(shape, dtype=dtype, device=generator.device)
    if name.endswith("bias"):
        return drawn.zero_().cpu()
    is_norm = len(shape) == 1 and name.endswith("weight")
    return (drawn.fill_(1) if is_norm else drawn.normal_(0, 0.02, generator=generator)).cpu()


def processor(size: Size, model_type: str) -> Any:
    """The class's own processor with the tower's picture size, and a tokenizer of numbered words."""
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, size.rows - 64))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    inner.add_special_tokens(["<image>", "<pad>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    square = {"height": size.side, "width": size.side}
    kind = "LlavaNext" if model_type == "llava_next" else "Llava"
    eyes = getattr(transformers, "LlavaNextImageProcessor" if kind == "LlavaNext" else "CLIPImageProcessor")
    image_processor = eyes(size={"shortest_edge": size.side}, crop_size=square, **grids(size, model_type))
    return getattr(transformers, f"{kind}Processor")(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=size.patch, chat_template=TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
