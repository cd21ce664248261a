"""Shapes in symbols: `"Q+2*K D"` and the numbers of a config give `(6144, 4096)`."""

from collections.abc import Mapping
from functools import cache


def evaluate(expression: str, values: Mapping[str, int]) -> int:
    """A sum of products of symbols and whole numbers, such as `Q+2*K`."""
    return sum(_product(term, values) for term in _terms(expression))


def names_in(expression: str) -> list[str]:
    """The symbols of an expression, each once, in order."""
    return list(dict.fromkeys(f for term in _terms(expression) for f in term if not f.isdigit()))


@cache
def _terms(expression: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(term.split("*")) for term in expression.split("+"))


def _product(factors: tuple[str, ...], values: Mapping[str, int]) -> int:
    result = 1
    for factor in factors:
        result *= int(factor) if factor.isdigit() else values[factor]
    return result
