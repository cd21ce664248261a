"""The bytes of the weights against the hashes that fuse.json records."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

from fuse.digests import MARK, RECORD, Digest, ends_of, file_digest, in_order
from fuse.errors import CheckpointError, MachineError
from fuse.safetensors_header import TensorEntry
from fuse.sizes import counted, size_text
from fuse.team import made, team
from fuse.verify.headers import Weights
from fuse.verify.outcome import Outcome, skipped
from fuse.verify.record import Record


def check_bytes(weights: Weights, record: Record | None, threads: int, progress: Callable[[int], None]) -> Outcome:
    """Every file of weights has the sha256 that was recorded.

    threads: how many files are read at once. progress: called with the bytes read since the last call, in this thread
    or another. Raises CheckpointError that names the first file that differs, and where marks were recorded the first
    tensor of it that does.
    """
    if record is None:
        return skipped(f"no {RECORD}: there is nothing to compare the bytes with")
    recorded = {file: record.sha256[file.name] for file in weights.files if record.sha256.get(file.name)}
    if not recorded:
        return skipped(f"{RECORD} holds no hashes (fuse merge --no-hash)")
    found = _digests(weights, list(recorded), threads, progress)
    differ = [file for file in recorded if found[file].sha256 != recorded[file]]
    if differ:
        file = differ[0]
        where = _first(weights.files[file], found[file].marks, record.marks.get(file.name, ""))
        more = f" ({len(differ)} of {len(weights.files)} files differ)" if len(differ) > 1 else ""
        raise CheckpointError(f"is not as {RECORD} records it{where}{more}", where=file)
    size = sum(file.stat().st_size for file in recorded)
    left = len(weights.files) - len(recorded)
    told = f"{counted(len(recorded), 'file')} as recorded, {size_text(size)}"
    told += f"; {counted(left, 'file')} without a hash" if left else ""
    return Outcome(told, counts={"files": len(recorded), "bytes": size})


def _digests(
    weights: Weights, files: Sequence[Path], threads: int, progress: Callable[[int], None]
) -> dict[Path, Digest]:
    stop = Event()

    def digest(file: Path) -> Digest:
        try:
            return file_digest(file, ends_of(weights.files[file]), stop, progress=progress)
        except OSError as error:
            raise MachineError(f"cannot be read ({error.strerror})", where=file) from None

    with team(min(threads, len(files)), stop) as hashers:
        return made({file: hashers.submit(digest, file) for file in files}, stop)


def _first(entries: Sequence[TensorEntry], marks: str, recorded: str) -> str:
    """Where a file first differs, as far as its marks tell."""
    if not recorded:
        return ""
    pairs = zip(_cut(marks), _cut(recorded), strict=False)  # a file may have lost or gained tensors
    at = next((i for i, (found, told) in enumerate(pairs) if found != told), 0)  # else more or fewer: its header
    return f": tensor {in_order(entries)[at - 1].name!r} differs" if at else ": its header differs"


def _cut(marks: str) -> list[str]:
    return [marks[at : at + MARK] for at in range(0, len(marks), MARK)]
