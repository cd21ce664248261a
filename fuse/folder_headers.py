"""The headers of a folder's files of weights: read here, or fetched several at a time from where the files are."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from fuse.folder_links import inside
from fuse.safetensors_header import TensorEntry, read_header

if TYPE_CHECKING:
    from fuse.repository import Repository

AT_ONCE = 8


def headers(
    folder: Path, names: Sequence[str], repository: "Repository | None"
) -> Iterator[tuple[str, dict[str, TensorEntry]]]:  # fmt: skip
    """Each file's name and header in turn; errors as `header_of`, the first in the order of names."""
    if repository is None:
        yield from ((name, header_of(folder, name, None)) for name in names)
        return
    from fuse.team import made, team

    with team(AT_ONCE, stop := Event()) as pool:
        found = made({name: pool.submit(header_of, folder, name, repository) for name in names}, stop)
    yield from found.items()


def header_of(folder: Path, name: str, repository: "Repository | None") -> dict[str, TensorEntry]:
    """The header of one file; CheckpointError as `read_header`, MachineError where it cannot be reached."""
    if repository is None or (not repository.etags and (folder / name).exists()):
        return read_header(inside(folder, folder / name))
    return repository.header(name, folder / name)
