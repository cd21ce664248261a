"""Links in a stranger's folder may lead to other files of it, and to the blobs of a hub cache, but not elsewhere."""

from pathlib import Path

from fuse.errors import CheckpointError
from fuse.small_files import FOLDERS

# what fuse or a library reads of a folder; a model card may be a link, it is only looked through for a licence
READ = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".safetensors"}


def inside(folder: Path, path: Path) -> Path:
    """The path, after a check that it is in the folder or in the blobs beside its snapshot, links followed."""
    try:
        home, real = folder.resolve(), path.resolve()
    except RuntimeError:
        raise CheckpointError("is a link that leads to itself", where=path) from None
    if not real.is_relative_to(home) and real.parent != home.parent.parent / "blobs":
        raise CheckpointError(f"is a link out of the folder, to {real}", where=path)
    return path


def check_links(folder: Path) -> None:
    """No file that is read of a folder, or of those in it, is a link out of it; CheckpointError for one that is."""
    inner = [inside(folder, folder / name) for name in FOLDERS if (folder / name).is_dir()]
    for path in (path for place in (folder, *inner) for path in place.iterdir()):
        if path.is_symlink() and path.suffix in READ:
            inside(folder, path)
