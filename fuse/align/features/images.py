"""The pictures of a folder, in the order of their names, in batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image

from fuse.errors import CheckpointError, FuseError, RecipeError
from fuse.images import READ, open_image

Prepared = TypeVar("Prepared")
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass
class Skipped:
    """Files that were passed over: name in the folder -> why."""

    why: dict[str, str] = field(default_factory=dict)


def image_files(folder: Path) -> list[Path]:
    """The pictures of a folder and its subfolders, told by their endings, sorted by path; other files are no pictures.

    Names that begin with a dot are left out. Raises RecipeError where there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        told = "is a file, not a folder of images" if folder.exists() else "there is no such folder"
        raise RecipeError(told, where=folder)
    found = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not found:
        raise RecipeError("holds no images", where=folder, hint=READ)
    return found


def read_batches(
    files: list[Path], folder: Path, size: int, prepare: Callable[[Image.Image], Prepared], skipped: Skipped | None,
    done: Callable[[int], None],
) -> Iterator[list[Prepared]]:  # fmt: skip
    """What is made of the pictures, in batches of up to `size`.

    prepare: makes of a picture what encoders take. skipped: where pictures are written down that cannot be read, or
    that an encoder does not take; None to raise what `open_image` or `prepare` raises, with the file's name. done: gets
    the number of files behind each batch, once the batch was used.
    """
    batch: list[Prepared] = []
    passed = 0
    for number, file in enumerate(files):
        passed += 1
        try:
            batch.append(prepare(open_image(file)))
        except CheckpointError:  # of the member, not of the picture
            raise
        except FuseError as error:
            if skipped is None:
                raise type(error)(error.problem, where=file, hint="--skip-bad leaves it out") from None
            skipped.why[str(file.relative_to(folder))] = error.problem
        if batch and (len(batch) == size or number + 1 == len(files)):
            yield batch
            done(passed)
            batch, passed = [], 0
