"""The folder of an adapter as PEFT writes it: adapter_config.json beside adapter_model.safetensors. Headers only."""

from pathlib import Path

from fuse import strict_json
from fuse.checkpoint import Checkpoint, locate
from fuse.errors import CheckpointError
from fuse.grafts.lora_peft import CONFIG, WEIGHTS
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry, read_header

PICKLE = "adapter_model.bin"


def open_folder(name: str, location: str, *, revision: str | None, relative_to: Path) -> Checkpoint:
    """The adapter's config and tensors; errors as `fuse.checkpoint.open_checkpoint` raises them."""
    folder, repository, commit = locate(location, revision, relative_to, "an adapter is the folder that PEFT wrote")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"holds no {CONFIG}", where=folder, hint="an adapter is the folder that PEFT wrote")
    config = strict_json.read_object(folder / CONFIG, max_bytes=16 << 20)
    away = repository.names if repository else frozenset()
    if not (folder / WEIGHTS).is_file() and WEIGHTS not in away:
        if (folder / PICKLE).is_file() or PICKLE in away:
            raise CheckpointError(
                f"holds {PICKLE}, a pickle, which only `fuse import` reads", where=folder,
                hint="fuse import llava_lora FOLDER OUT, and name OUT as the adapter",
            )  # fmt: skip
        raise CheckpointError(f"holds no {WEIGHTS}", where=folder)
    if repository is None or (folder / WEIGHTS).exists():
        tensors = read_header(folder / WEIGHTS)
    else:
        from fuse.hub import remote_header

        tensors = remote_header(repository, WEIGHTS, folder / WEIGHTS)
    _check(tensors)
    return Checkpoint(name, folder, config, tensors, location, commit, repository)


def _check(tensors: dict[str, TensorEntry]) -> None:
    for entry in tensors.values():
        if entry.dtype not in FLOAT_BYTES:
            raise CheckpointError(f"tensor {entry.name!r} has dtype {entry.dtype}, not floats", where=entry.file)


def fetch_adapter(checkpoint: Checkpoint) -> None:
    """Bring the weights of a hub adapter to this machine; errors as `fuse.checkpoint.fetch`."""
    if checkpoint.repository is None:
        return
    from fuse.hub import download

    download(checkpoint.repository, [WEIGHTS])
    if read_header(checkpoint.folder / WEIGHTS) != checkpoint.tensors:
        raise CheckpointError("the weights on the hub changed while they were read", where=checkpoint.folder)
