"""How an encoder's library prepares an image: its own transform, with the values that the branch's JSON states."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fuse import torchvision_shim
from fuse.branches.encoder_places import Part, open_clip_part, timm_part, transformers_part
from fuse.errors import CheckpointError

Preprocess = Callable[[Image.Image], torch.Tensor]


def preprocess(config: Mapping[str, Any], folder: Path) -> tuple[Preprocess, Part]:
    """A function from an RGB image to float32 [3, H, W], and one from its size to the part of it that is seen.

    config: the branch's JSON (`library`, `preprocess`, `architecture`). folder: for transformers, where its
    preprocessor_config.json is. Raises CheckpointError where the values are missing or make no transform.
    """
    torchvision_shim.install()
    makers = {"open_clip": _open_clip, "timm": _timm, "transformers": _transformers}
    try:
        return makers[config["library"]](config, folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        told = (str(error).splitlines() or [""])[0][:200]
        raise CheckpointError(f"its images cannot be prepared ({type(error).__name__}: {told})", where=folder) from None


def _open_clip(config: Mapping[str, Any], folder: Path) -> tuple[Preprocess, Part]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    stated: dict[str, Any] = {**config["preprocess"], "size": tuple(config["preprocess"]["size"])}
    transform: Any = image_transform_v2(PreprocessCfg(**stated), is_train=False)
    return transform, open_clip_part(config["preprocess"])


def _timm(config: Mapping[str, Any], folder: Path) -> tuple[Preprocess, Part]:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    stated: dict[str, Any] = dict(config.get("preprocess") or {})
    if stated:
        stated["input_size"] = (3, *stated.pop("size"))
    else:
        found = timm.get_pretrained_cfg(config["architecture"])
        if found is None:
            raise ValueError(f"timm has no preprocessing for {config['architecture']}")
        stated = found.to_dict()
    resolved = resolve_data_config(pretrained_cfg=stated)
    transform: Any = create_transform(**resolved, is_training=False)
    return transform, timm_part(resolved)


def _transformers(config: Mapping[str, Any], folder: Path) -> tuple[Preprocess, Part]:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)

    def prepare(image: Image.Image) -> torch.Tensor:
        return torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"][0])

    return prepare, transformers_part(processor)
