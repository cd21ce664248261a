"""Bridges between two bases, fitted in closed form to pairs of states of two language models: no gradient.

Pure functions of tensors, in float64. The methods are the usual ones; what they leave open is our choice and said where
it is made. This is calibration on data, not training: the maps are the closed-form solutions of two problems,

    procrustes   min |Y - s X R'|, R orthogonal (semi-orthogonal for other widths), the size s that keeps norms
    ridge        min |Y - X W'|^2 + penalty |W|^2, once in each direction

for states X [n, D] of the new host and Y [n, d] of the donor's, with their means taken out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# In units of the mean variance; our choice. What a graft writes lies outside of what texts span, where a map that is
# fitted sharply to states makes it far too large (docs/grafts_bridges.md).
PENALTIES, WRITING = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), (1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Bridge:
    """down [d, D] and offset [d]: y = down x + offset. up [D, d] and up_offset [D]: x = up y + up_offset.

    size: how much longer the donor's states are than the new host's, of which up is down's transpose / size squared;
    None where the two are fitted apart.
    """

    down: torch.Tensor
    offset: torch.Tensor
    up: torch.Tensor
    up_offset: torch.Tensor
    size: float | None = None


def fit(source: torch.Tensor, target: torch.Tensor, method: str, centred: bool = True) -> Bridge:
    """The bridge from pairs of states.

    source: [n, d] of the donor's host, target: [n, D] of the new host, the same tokens row by row. method:
    `procrustes` or `ridge`; `embedding` is procrustes, on rows of embeddings. centred: take the means out, and fit
    offsets.
    """
    y, x = source.double(), target.double()
    nothing = torch.zeros(1, dtype=torch.float64)
    means = (y.mean(0), x.mean(0)) if centred else (nothing.expand(y.shape[1]), nothing.expand(x.shape[1]))
    y, x = y - means[0], x - means[1]
    if method == "ridge":
        down, up, size = _ridge(x, y, PENALTIES), _ridge(y, x, WRITING), None
    else:
        left, _, right = torch.linalg.svd(y.T @ x, full_matrices=False)
        turn = left @ right  # [d, D]
        reached = (x @ turn.T).norm()
        size = float(y.norm() / reached) if reached > 0 else 1.0
        down, up = size * turn, turn.T / size
    return Bridge(down, means[0] - down @ means[1], up, means[1] - up @ means[0], size)


def _ridge(x: torch.Tensor, y: torch.Tensor, penalties: Sequence[float]) -> torch.Tensor:
    """W [d, D] of y = W x, with the penalty that serves rows best that were left out, every fifth: our choice."""
    last = torch.arange(len(x)) % 5 == 4
    values, vectors = torch.linalg.eigh(x[~last].T @ x[~last])
    cross = vectors.T @ (x[~last].T @ y[~last])
    unit = values.clamp_min(0).mean()

    def error(penalty: float) -> float:
        weight = vectors @ (cross / (values.clamp_min(0) + penalty * unit)[:, None])
        return float((y[last] - x[last] @ weight).square().sum())

    best = min(penalties, key=error) if bool(last.any()) else penalties[0]
    whole = x.T @ x
    whole.diagonal().add_(best * whole.diagonal().mean())
    return torch.linalg.solve(whole, x.T @ y).T


def r2(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """1 - |wanted - found|^2 / |wanted - its mean|^2 over all numbers of [n, width]; 1 where both are constant."""
    left = float((wanted - found).double().square().sum())
    spread = float((wanted - wanted.mean(0)).double().square().sum())
    return 1 - left / spread if spread > 0 else float(left == 0)


def fits(bridge: Bridge, source: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """R2 of reading (the donor's states from the new host's) and of writing (the other way), on given pairs."""
    y, x = source.double(), target.double()
    return r2(x @ bridge.down.T + bridge.offset, y), r2(y @ bridge.up.T + bridge.up_offset, x)


def held_out(texts: torch.Tensor) -> torch.Tensor:
    """Which pairs are kept for R2, [n]: those of every fifth text (our choice). texts: [n], the text of each pair."""
    return texts % 5 == 4


def spoken(token: str) -> str:
    """A token's text in any tokenizer's spelling of a space in front (sentencepiece's, byte-level BPE's)."""
    return " " + token[1:] if token[:1] in ("\u2581", "\u0120") else token


def shared_rows(source: Sequence[tuple[str, int]], target: Sequence[tuple[str, int]]) -> tuple[list[int], list[int]]:
    """(rows of the donor's embedding, rows of the new host's) of the tokens that both vocabularies have.

    Each given as (token, row). A text that a vocabulary spells twice is left out.
    """
    ours, theirs = _once(target), _once(source)
    both = sorted(theirs.keys() & ours.keys(), key=lambda text: theirs[text])
    return [theirs[text] for text in both], [ours[text] for text in both]


def _once(tokens: Sequence[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    twice: set[str] = set()
    for token, row in tokens:
        text = spoken(token)
        twice |= {text} if text in found else set()
        found[text] = row
    return {text: row for text, row in found.items() if text not in twice}
