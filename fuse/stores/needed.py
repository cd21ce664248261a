"""What a plan reads of members that are in stores."""

from pathlib import Path

from fuse.checkpoint import Checkpoint
from fuse.plan import Plan
from fuse.safetensors_header import TensorEntry


def wanted_of(plan: Plan) -> list[TensorEntry] | None:
    """The stored tensors that the plan reads; None where it needs all: a bridge is fitted on what runs as a whole."""
    return None if plan.bridges else [source.tensor for row in plan.rows for source in row.reads]


def partial_files(plan: Plan) -> frozenset[Path]:
    """The weight files in stores of which a tensor is not wanted: they are not here as a whole, nor their sha256."""
    wanted = wanted_of(plan)
    if wanted is None:
        return frozenset()
    read = {_place(tensor) for tensor in wanted}
    opened = [m.checkpoint for m in plan.members] + [one.checkpoint for one in plan.lenders if one.checkpoint]
    far = [tensor for one in opened if _is_far(one) for tensor in (one.stored or one.tensors).values()]
    return frozenset(tensor.file for tensor in far if _place(tensor) not in read)


def etags_of(checkpoint: Checkpoint) -> dict[str, str]:
    """What the store said of each of its files of weights; empty where it is in none."""
    etags = checkpoint.repository.etags if checkpoint.repository else {}
    return {file.name: etags[file.name] for file in checkpoint.weight_files if file.name in etags}


def _place(tensor: TensorEntry) -> tuple[Path, int, int]:
    return tensor.file, tensor.begin, tensor.end


def _is_far(checkpoint: Checkpoint) -> bool:
    return checkpoint.repository is not None and bool(checkpoint.repository.etags)
