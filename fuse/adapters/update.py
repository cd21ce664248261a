"""What an adapter makes of one stored tensor, as a plan says it; `fuse.engine.adapted` computes it."""

from dataclasses import dataclass
from typing import Literal

from fuse.safetensors_header import TensorEntry

Kind = Literal["lora", "dora", "loha", "lokr", "scale", "bias", "rows"]


@dataclass(frozen=True)
class Update:
    """The change of one tensor.

    adapter: whose tensors the parts are, as a plan's sources name it. kind: the formula. parts: the adapter's tensors
    by their role in it. scale: what the change is multiplied by. transposed: the tensor lies [in, out], as Conv1D and
    embeddings do; of `scale`, the columns are multiplied and not the rows. rows: of `rows`, the rows that are replaced.
    """

    adapter: str
    kind: Kind
    parts: tuple[tuple[str, TensorEntry], ...]
    scale: float = 1.0
    transposed: bool = False
    rows: tuple[int, ...] = ()
