"""Rows matched by token: against a dictionary oracle, on vocabularies that share some tokens."""

from hypothesis import given
from hypothesis import strategies as st

from fuse.rows import match_rows, shared_rows
from fuse.vocabulary import Vocabulary

TOKENS = [f"t{i}" for i in range(12)]
ORDERS = st.permutations(TOKENS).flatmap(lambda order: st.integers(0, 12).map(lambda n: order[:n]))


def vocabulary(tokens: list[str]) -> Vocabulary:
    return Vocabulary({t: i for i, t in enumerate(tokens)}, frozenset(), "", "", "")


@given(ORDERS, st.lists(ORDERS, min_size=1, max_size=3), st.integers(0, 14), st.integers(0, 14))
def test_agrees_with_a_dictionary(host: list[str], others: list[list[str]], host_rows: int, rows: int) -> None:
    runs = match_rows(vocabulary(host), host_rows, [(vocabulary(o), rows) for o in others])
    found = {run.host + k: tuple(s + k for s in run.sources) for run in runs for k in range(run.length)}
    wanted = {
        i: tuple(o.index(token) for o in others)
        for i, token in enumerate(host)
        if i < host_rows and all(token in o and o.index(token) < rows for o in others)
    }
    assert found == wanted and shared_rows(runs) == len(wanted)


def test_equal_vocabularies_are_one_run() -> None:
    (run,) = match_rows(vocabulary(TOKENS), 20, [(vocabulary(TOKENS), 12), (vocabulary(TOKENS), 16)])
    assert (run.host, run.length, run.sources) == (0, 12, (0, 0))
