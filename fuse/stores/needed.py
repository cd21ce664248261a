"""What a plan reads of members that are elsewhere."""

from pathlib import Path

from fuse.checkpoint import Checkpoint, fetch
from fuse.plan import Plan
from fuse.safetensors_header import TensorEntry


def fetch_needed(plan: Plan) -> frozenset[Path]:
    """Bring the weights that the plan reads to this machine. The files of which only a part was asked for.

    Raises what `fuse.checkpoint.fetch` raises.
    """
    wanted = [source.tensor for row in plan.rows for source in row.reads]
    needed = None if plan.bridges else wanted  # a bridge is fitted on what runs as a whole
    for member in plan.members:
        fetch(member.checkpoint, needed)
    for lender in plan.lenders:
        lender.fetch(needed)
    for bridge in plan.bridges.values():
        fetch(bridge.host.checkpoint)
    return partial_files(plan)


def partial_files(plan: Plan) -> frozenset[Path]:
    """The weight files in stores of which the plan does not read every tensor: their sha256 is not known."""
    if plan.bridges:
        return frozenset()
    read = {_place(source.tensor) for row in plan.rows for source in row.reads}
    opened = [m.checkpoint for m in plan.members] + [one.checkpoint for one in plan.lenders if one.checkpoint]
    far = [tensor for one in opened if _far(one) for tensor in (one.stored or one.tensors).values()]
    return frozenset(tensor.file for tensor in far if _place(tensor) not in read)


def _place(tensor: TensorEntry) -> tuple[Path, int, int]:
    return tensor.file, tensor.begin, tensor.end


def _far(checkpoint: Checkpoint) -> bool:
    return checkpoint.repository is not None and bool(checkpoint.repository.etags)
