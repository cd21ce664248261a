"""The picture of `fuse inspect attention`: every member's map over the image, and its answer."""

from pathlib import Path

from fuse.align.attention.document import Watching
from fuse.errors import MachineError
from fuse.report.side_by_side import Panel, side_by_side
from fuse.sizes import counted


def draw(found: Watching, path: Path) -> None:
    """Write the PNG, and the folder it lies in where that is missing. Raises MachineError where that cannot be."""
    panels = [
        Panel(name, one.map, f"{one.share:.1%} of the attention, {counted(one.tokens, 'token')}", one.answer)
        for name, one in found.members.items()
    ]
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot be written ({error.strerror})", where=path.parent) from None
    side_by_side(
        found.image, panels, path, question=found.document["question"], sentences=found.document["sentences"]
    )  # fmt: skip
