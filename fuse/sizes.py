"""Bytes and counts as people read them."""


def size_text(count: int) -> str:
    """1.9 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def counted(count: int, what: str) -> str:
    """1 token, 2 tokens, 1,000 tokens."""
    return f"{count:,} {what}{'s' * (count != 1)}"
