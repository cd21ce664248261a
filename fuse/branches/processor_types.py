"""Whether transformers knows the image processors that a folder's branches ask for, before any weight is read."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import CheckpointError
from fuse.fused import FusedBranch


def check_processor_types(branches: Sequence[FusedBranch]) -> None:
    """CheckpointError for a native branch whose member names an image processor that transformers does not have.

    Where a file names none, transformers goes by the model type. It is imported here.
    """
    for branch in branches:
        if branch.kind == "native" and branch.member is not None:
            for file, name in _named(branch.member.folder):
                _check(file, name)


def _named(folder: Path) -> Iterator[tuple[Path, Any]]:
    """The file that counts, and the name in it: an image processor inside the processor's file goes first."""
    inner, own = folder / "processor_config.json", folder / "preprocessor_config.json"
    told = strict_json.read_object(inner).get("image_processor") if inner.is_file() else None
    if isinstance(told, dict):
        yield inner, told.get("image_processor_type")
    elif own.is_file():
        yield own, strict_json.read_object(own).get("image_processor_type")


def _check(file: Path, name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise CheckpointError(f"image_processor_type is {name!r}, not a name", where=file)
    if name.removesuffix("Fast") not in _known():  # with it older releases called those that need torchvision
        raise CheckpointError(
            f"image_processor_type is {name!r}, which transformers does not have", where=file,
            hint="is it of a newer release, or of code that came with the model? fuse runs none",
        )  # fmt: skip


def _known() -> set[str]:
    """The names of all image processors of transformers; none of their modules is imported."""
    from transformers.models.auto import image_processing_auto

    found: set[str] = {"BaseImageProcessor"}
    for names in image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES.values():  # pyright: ignore[reportPrivateImportUsage]
        found |= set(filter(None, names.values() if isinstance(names, Mapping) else names))
    return found
