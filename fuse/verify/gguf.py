"""A folder of GGUFs, as `fuse export --to gguf` writes it: each is one, and still the one that was written."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from fuse.digests import RECORD
from fuse.errors import CheckpointError, MachineError
from fuse.export.gguf_converter import VERSIONS, tensors_in
from fuse.sizes import counted, size_text
from fuse.verify.outcome import Outcome, skipped
from fuse.verify.record import Record

Bar = Callable[[int], AbstractContextManager[Callable[[int], None]]]
NO_TRANSFORMERS = "a GGUF is for llama.cpp and what reads its files, which are not called"


def ggufs(folder: Path) -> list[Path]:
    """The GGUFs of a folder, in the order of names."""
    return sorted(path for path in folder.glob("*.gguf") if path.is_file())


def is_gguf(folder: Path) -> bool:
    """Whether the folder's weights are GGUFs and nothing else."""
    return not (folder / "config.json").is_file() and bool(ggufs(folder))


def check_gguf(folder: Path, record: Record | None) -> Outcome:
    """Every GGUF begins as one, with tensors.

    Raises CheckpointError for the first that does not, and for other weights in a folder with a fuse.json.
    """
    if record and (beside := sorted(folder.rglob("*.safetensors"))):
        raise CheckpointError(f"holds weights that {RECORD} does not record", where=beside[0])
    files, tensors = ggufs(folder), 0
    for file in files:
        try:
            held = tensors_in(file)
        except OSError as error:
            raise MachineError(f"cannot be read ({error.strerror})", where=file) from None
        if not held:
            versions = " or ".join(map(str, VERSIONS))
            raise CheckpointError(f"is no GGUF of version {versions} with tensors", where=file)
        tensors += held
    size = sum(file.stat().st_size for file in files)
    told = f"{counted(tensors, 'tensor')} in {counted(len(files), 'file')}, {size_text(size)}"
    return Outcome(told, counts={"tensors": tensors, "files": len(files), "bytes": size})


def check_gguf_bytes(folder: Path, record: Record | None, threads: int, bar: Bar) -> Outcome:
    """Every GGUF has the sha256 that was recorded. Raises CheckpointError that names the first that differs."""
    from fuse.verify.sources import digests

    if record is None:
        return skipped(f"no {RECORD}: there is nothing to compare the bytes with")
    files = ggufs(folder)
    recorded = {file: record.files[file.name] for file in files if record.files.get(file.name)}
    if not recorded:
        return skipped(f"{RECORD} holds no hashes of them")
    found = digests(list(recorded), threads, bar)
    for file, sha256 in recorded.items():
        if found[file] != sha256:
            raise CheckpointError(f"is not as {RECORD} records it", where=file)
    size = sum(file.stat().st_size for file in recorded)
    told = f"{counted(len(recorded), 'file')} as recorded, {size_text(size)}"
    left = len(files) - len(recorded)
    told += f"; {counted(left, 'file')} without a hash" if left else ""
    return Outcome(told, counts={"files": len(recorded), "bytes": size})
