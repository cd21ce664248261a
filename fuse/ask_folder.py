"""What can be told of a model folder before it is loaded: its config, whether it sees, whether it may be loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuse import families, strict_json
from fuse.branches.library_names import check_names
from fuse.checkpoint import ADAPTED, INDEX, SINGLE, check_config, check_handed
from fuse.errors import CheckpointError, RecipeError
from fuse.fusable import REFUSED
from fuse.handed import check_small
from fuse.no_folder import no_folder
from fuse.safetensors_header import read_header
from fuse.vocabulary import read_template

VOCABULARIES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


def check_folder(folder: Path, *, images: Sequence[Path] = ()) -> tuple[dict[str, Any], bool]:
    """The folder's config and whether its class is multimodal; no weights are read.

    images: that will be asked about. Raises RecipeError and CheckpointError for what can be told before loading.
    """
    if not folder.is_dir():
        raise no_folder(folder)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise RecipeError("this is an adapter, which changes a model and is none", where=folder,
                          hint=ADAPTED)  # fmt: skip
    config = strict_json.read_object(folder / "config.json", max_bytes=16 << 20)
    check_config({k: v for k, v in config.items() if k != "quantization_config"}, folder / "config.json")
    check_handed(folder)
    check_small(folder)
    read_template(folder)
    sees = config.get("model_type") == "fuse" or _native_sees(config, folder)
    eyes = config.get("branches") if config.get("model_type") == "fuse" else has_processor(folder)
    if images and not (sees and eyes):
        raise blind(folder)
    return config, sees


def has_processor(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("processor_config.json", "preprocessor_config.json"))


def check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Every file of weights is there and whole, by its header. Quantised ones hold what only their library knows.

    Raises CheckpointError, in the words of `read_header`.
    """
    if config.get("quantization_config"):
        return
    names = [SINGLE]
    if not (folder / SINGLE).exists():
        names = sorted(set(strict_json.read_object(folder / INDEX)["weight_map"].values()))
    for name in names:
        read_header(folder / name)


def check_tokenizer(folder: Path) -> None:
    """CheckpointError for a folder without any vocabulary."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise CheckpointError("the file is missing", where=folder / VOCABULARIES[0])


def _native_sees(config: dict[str, Any], folder: Path) -> bool:
    """Whether a folder of one of transformers' own classes is multimodal."""
    family = families.family_of(config, str(folder))
    check_names(config)
    if not family.native:
        raise CheckpointError(
            f"has the original layout of {family.model_type}, which only the code it came from loads", where=folder,
            hint="convert it to transformers' own layout first" if family.model_type in REFUSED else
            "a recipe with `output: {model: fuse}` makes a folder of it that runs",
        )  # fmt: skip
    return bool(family.vision)


def blind(folder: Path) -> RecipeError:
    return RecipeError("no image processor in this folder; ask it without --image", where=folder)
