"""Where the weights of a member are that is not a local folder: the hub, or an object store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fuse.safetensors_header import TensorEntry


class Repository(Protocol):
    """A folder elsewhere, at one commit.

    commit: what tells this state of it from every other. names: of its top-level files. etags: of its weight files,
    where nothing else tells the bytes of a file that was fetched in part.
    """

    @property
    def commit(self) -> str: ...
    @property
    def names(self) -> frozenset[str]: ...
    @property
    def etags(self) -> Mapping[str, str]: ...

    def header(self, name: str, path: Path) -> dict[str, TensorEntry]:
        """The header of a weight file; `path` is where the file will be. CheckpointError where there is none."""
        ...

    def fetch(self, entries: Sequence[TensorEntry]) -> None:
        """Bring at least these tensors to where their entries say. MachineError when they cannot be reached."""
        ...
