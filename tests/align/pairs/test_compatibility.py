"""The score of a pair: parts at known answers, what it is made of, and what it says."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.align.pairs import compatibility
from fuse.align.pairs.compatibility import FIT, PARTS, Part, score

NAMES = ("a", "b")
inside = st.floats(0, 1)


def parts(**values: float | None) -> dict[str, Part]:
    return {name: Part(values.get(name, 1.0), f"the {name}") for name in PARTS}


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        (compatibility.tokens(80, 80, 81), 1, "80 of 80 tokens at the same ids"),
        (compatibility.tokens(1500, 3000, 2000), 0.75, "1,500 of 2,000 tokens at the same ids"),
        (compatibility.tokens(0, 0, 9), 0, "0 of 0 tokens at the same ids"),
        (compatibility.distance([0.05, 0.25]), 0.75, "5.0% and 25.0% of the base's length away from it"),
        (compatibility.distance([math.sqrt(2), 0]), 0, "141.4% and 0.0% of the base's length away from it"),
        (compatibility.size([2.0, 2.0]), 1, "one task vector is 1.0 times as long as the other"),
        (compatibility.size([6.0, 2.0]), 1 / 3, "one task vector is 3.0 times as long as the other"),
        (compatibility.size([6.0, 0.0]), None, "a language model is the base's own"),
        (compatibility.size([0.0, 0.0]), None, "a language model is the base's own"),
        (compatibility.signs(1.0), 1, "100.0% of what both move has the same sign"),
        (compatibility.signs(0.5), 1, "50.0% of what both move has the same sign"),
        (compatibility.signs(0.1), 0.2, "10.0% of what both move has the same sign"),
        (compatibility.signs(0.0), 0, "0.0% of what both move has the same sign"),
        (compatibility.signs(None), None, "a language model is the base's own"),
        (compatibility.space(0.4, 1.0, ""), 0.4, "mean visual tokens have a cosine of 0.400"),
        (compatibility.space(-0.4, 1.0, ""), 0, "mean visual tokens have a cosine of -0.400"),
        (compatibility.space(None, 0.02, "far"), 0.02, "embeddings of words have a mean cosine of 0.020"),
        (compatibility.space(None, None, "far"), None, "far"),
        (compatibility.new(0.25, ""), 0.75, "CKA of the encoders' last layers is 0.250"),
        (compatibility.new(-0.01, ""), 1, "CKA of the encoders' last layers is -0.010"),
        (compatibility.new(None, "too few"), None, "too few"),
    ],
)
def test_parts_at_known_answers(part: Part, value: float | None, why: str) -> None:
    assert part.value == (value if value is None else pytest.approx(value)) and part.why == why


def test_an_identical_pair_fits_and_has_nothing_to_gain() -> None:
    found = score(parts(new=0.0), NAMES, cosine=1.0)
    assert (found.score, found.fit, found.missing) == (0, 1, ())
    assert found.verdict == (
        "a and b fit (the weakest, tokens is 1.00: the tokens); they see nearly the same, so fusing them gains little "
        "(the new); their task vectors are nearly one (cosine 1.000)"
    )


def test_an_unrelated_pair_does_not_fit() -> None:
    found = score(parts(distance=0.0, size=0.04, new=0.9), NAMES, cosine=0.0)
    assert (found.score, found.fit, found.weakest) == (0, 0, "distance")
    assert found.verdict == "a and b do not fit (distance is 0.00: the distance)"


def test_a_fit_below_the_threshold_is_poor() -> None:
    poor, good = (score(parts(size=size, new=0.5), NAMES) for size in (0.33, 0.34))
    assert poor.verdict == "a and b fit poorly, below 0.33 (size is 0.33: the size)"
    assert good.verdict == "a and b fit (the weakest, size is 0.34: the size)"
    assert (good.score, good.fit) == (pytest.approx(0.17), 0.34)


def test_what_is_missing_is_named() -> None:
    found = score(parts(space=None, new=None, size=0.5), NAMES)
    assert (found.score, found.fit, found.missing) == (0.5, 0.5, ("space", "new"))
    assert (
        found.verdict
        == "a and b fit (the weakest, size is 0.50: the size); not measured: space (the space), new (the new)"
    )
    nothing = score(parts(**dict.fromkeys(FIT)), NAMES)
    assert (nothing.score, nothing.fit, nothing.weakest, nothing.missing) == (None, None, None, FIT)
    assert nothing.verdict == "a and b: nothing was measured"


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(PARTS, inside)), st.sampled_from(PARTS), inside)
def test_more_of_a_part_is_never_less_of_the_score(values: dict[str, float], name: str, more: float) -> None:
    low, high = sorted((values[name], more))
    before, after = (score(parts(**{**values, name: value}), NAMES) for value in (low, high))
    assert before.score is not None and after.score is not None
    assert 0 <= before.score <= after.score <= 1


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(PARTS, inside)), st.sets(st.sampled_from(PARTS)))
def test_a_part_that_is_missing_could_only_lower_the_score(values: dict[str, float], missing: set[str]) -> None:
    whole, some = score(parts(**values), NAMES), score(parts(**values) | {n: Part(None, "") for n in missing}, NAMES)
    assert whole.score is not None and (some.score is None or some.score >= whole.score)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=2), st.floats(0.01, 100))
def test_size_and_order_and_scale(norms: list[float], scale: float) -> None:
    one, turned, scaled = (
        compatibility.size(given).value for given in (norms, norms[::-1], [scale * n for n in norms])
    )
    assert one == turned and scaled == pytest.approx(one)
