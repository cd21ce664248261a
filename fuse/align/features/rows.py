"""What is kept of an encoder's features while batches of images pass: samples for measures that need them together."""

from dataclasses import dataclass, field

import torch

from fuse.align.measures.reservoir import Reservoir


@dataclass
class Kept:
    """The features of one place (a layer, or behind the projector).

    rows: of all samples (cells of images) a draw of up to `limit`, the same for every encoder that gives as many.
    Beside each row stands the number of its cell. means: the same of whole images, each the mean of its cells. Memory:
    2 x limit x D numbers.
    """

    limit: int
    rows: Reservoir = field(init=False)
    means: Reservoir = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.means = Reservoir(self.limit), Reservoir(self.limit)

    def add(self, cells: torch.Tensor) -> None:
        """Take in a batch: [images, cells, D]."""
        self.rows.add(cells.flatten(0, 1), torch.arange(cells.shape[1]).repeat(len(cells)))
        self.means.add(cells.mean(1))

    def drawn(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(rows [n, D], image means [m, D], the number of each row's cell [n])."""
        rows, cells = self.rows.value()
        return rows, self.means.value()[0], cells
