"""Bytes and counts as people read them."""


def size_text(count: int) -> str:
    """1.9 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def duration_text(seconds: float) -> str:
    """2.5 s, 40 s, 3.2 min, 5.1 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(count: int, what: str) -> str:
    """1 token, 2 tokens, 1,000 tokens."""
    return f"{count:,} {what}{'s' * (count != 1)}"
