"""The small files of a folder, looked at before a library reads them as they stand."""

from pathlib import Path

from fuse import strict_json
from fuse.image_files import check_numbers
from fuse.small_files import COPIED, FOLDERS

LARGE = ("tokenizer.json", "vocab.json")  # which take a while to parse


def check_small(folder: Path) -> None:
    """Every small file of a folder, and of its branches, may be handed to a library.

    Raises CheckpointError for one that is no plain file, is too large, or should be a JSON object and is none,
    and for numbers of a processor as `check_numbers`.
    """
    for place in (folder, *folder.glob("branches/*"), *(folder / name for name in FOLDERS)):
        for file in (place / name for name in COPIED):
            if file.exists():
                _check(file)


def _check(file: Path) -> None:
    if file.suffix != ".json" or file.name in LARGE:
        strict_json.read_bytes(file)
        return
    value = strict_json.read_object(file)
    if "processor" in file.name:
        check_numbers(value, file)
