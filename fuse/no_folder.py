"""What is said where a verb needs a folder of this disk and there is none."""

import re
from pathlib import Path

from fuse.errors import RecipeError
from fuse.stores.address import SCHEMES

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
STORE = re.compile(rf"({'|'.join([*SCHEMES, 'hf'])}):/+(.+)")


def no_folder(folder: Path) -> RecipeError:
    """The error for a folder that is a file or not there, with how to bring it here from a store or the hub."""
    text = str(folder)
    if store := STORE.fullmatch(text):
        scheme, rest = store[1], store[2]
        if scheme == "hf":
            return RecipeError("this verb reads folders of this disk", where=f"hf://{rest}", hint=_download(rest))
        copy = f"aws s3 cp --recursive s3://{rest} FOLDER" if scheme == "s3" else "copy it with the store's own tool"
        return RecipeError("this verb reads folders of this disk", where=f"{scheme}://{rest}", hint=copy)
    if folder.exists():
        return RecipeError("is a file, not a folder", where=folder)
    hint = _download(text) if HUB_ID.fullmatch(text) and not folder.parent.exists() else ""
    return RecipeError("there is no such folder", where=folder, hint=hint)


def _download(repository: str) -> str:
    return f"hf download {repository} --local-dir FOLDER brings a repository of the hub"
