"""The parts of a language model that a search gives a coefficient each: attention, MLP, and the rest."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

PARTS = ("attention", "mlp", "rest")
# Patterns over canonical names of every family in fuse.families.text; "rest" is norms, embeddings, head and gates.
PATTERNS = (
    ("*attn.*", 0), ("*Attention.*", 0),  # self_attn, cross_attn, attn; T5's SelfAttention and EncDecAttention
    ("*.mlp.*", 1), ("*.DenseReluDense.*", 1), ("*.fc[12].*", 1),  # T5's and OPT's
    ("*", 2),
)  # fmt: skip


def part_patterns(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Of PATTERNS those that are the first to fit some of these canonical names, each with its number in PARTS.

    A recipe's table may not hold a pattern that fits nothing (`fuse.parameters`).
    """
    first = {next(row for row in PATTERNS if fnmatchcase(name, row[0])) for name in names}
    return tuple(row for row in PATTERNS if row in first)
