"""Small documents of `fuse inspect encoders` for tests of what is made of them."""

from typing import Any


def pair(
    values: dict[str, float], found: dict[str, Any] | None = None, *, projector: dict[str, float] | None = None,
    details: dict[str, Any] | None = None, unmeasured: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A pair of a and b. values and found: of the encoder, and its details. projector: values, with details."""
    behind = {"values": projector or {}, "details": details or {}, "unmeasured": unmeasured or {}}
    return {
        "a": "a", "b": "b", "layers": {"how": "exact, over 4 samples"},
        "encoder": {"values": values, "details": found or {}, "unmeasured": {}}, "projector": behind, "llm": None,
    }  # fmt: skip


def document(one: dict[str, Any], norms: tuple[float, float] = (1.0, 1.0)) -> dict[str, Any]:
    """The document with that pair."""
    members = {name: {"projector": {"norm": norm}} for name, norm in zip(("a", "b"), norms, strict=True)}
    return {"members": members, "pairs": [one], "images": 4, "skipped": [], "common_grid": {}}
