"""Scores: exact match, VQA accuracy by the official rules, choices, CIDEr against float64 oracles."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.errors import MachineError, RecipeError
from fuse.evaluate.captions import cider, words
from fuse.evaluate.metrics import check_metrics, exact, plain, scores
from fuse.evaluate.questions import Question
from fuse.evaluate.replies import Reply
from fuse.evaluate.vqa_rules import CONTRACTIONS, accuracy, normalised


def question(key: str, metric: str, *answers: str, choices: tuple[str, ...] = ()) -> Question:
    return Question(int(key), key, "?", (), answers, choices, "all", metric, f"data.jsonl:{key}")


@pytest.mark.parametrize(
    ("said", "answers", "score"),
    [
        ("red", ["red"], 1), (" Red  cube.\n", ["red cube"], 1), ("STRASSE!", ["Straße"], 1), ("\uff52ed", ["red"], 1),
        ("red", ["blue", "Red."], 1), ("a red", ["red"], 0), ("two", ["2"], 0), ("3.0", ["3"], 0), ("", ["red"], 0),
        ("?", ["?"], 1), ("?", ["!"], 0), ("", ["..."], 0), ("yes, it is.", ["Yes, it is"], 1), ("red . ", ["red"], 1),
    ],
)  # fmt: skip
def test_exact(said: str, answers: list[str], score: float) -> None:
    assert exact(said, answers) == score


@given(st.text())
def test_plain_twice_is_plain(text: str) -> None:
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The two dogs, I think.", "2 dogs i think"), ("An apple", "apple"), ("none", "0"), ("TEN", "10"),
        ("100,978", "100978"), ("blue/green", "blue green"), ("blue-green", "blue green"), ("blue - green", "blue green"),
        ("blue- dark-green", "blue darkgreen"), ("1,000 blue/green", "1000 bluegreen"), ("2:50 pm", "2:50 pm"), ("2.50", "2.50"),
        ("2.", "2"), ("e.g. this", "eg this"), ("dont", "don't"), ("couldnt've", "couldn't've"), ("im", "im"),
        ("dog's", "dog's"), ("no\nway\tout", "no way out"), ("A", "a"), ("the", "the"), ("-", "-"), ("", ""),
    ],
)  # fmt: skip
def test_vqa_normalisation(text: str, same: str) -> None:
    assert normalised(text) == same


def test_contractions_lead_to_what_is_no_contraction_short_of_an_apostrophe() -> None:
    assert len(CONTRACTIONS) == 114
    assert not set(CONTRACTIONS) & set(CONTRACTIONS.values())
    assert all(right.replace("'", "") == short.replace("'", "") for short, right in CONTRACTIONS.items())


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_of_ten_people(agreeing: int, score: float) -> None:
    """The well-known figures of VQA v2: 0, 30, 60, 90 and 100 per cent."""
    answers = ["two"] * agreeing + ["blue"] * (10 - agreeing)
    assert accuracy(" The 2. ", answers) == pytest.approx(score, abs=1e-15)


@given(
    answers=st.lists(st.sampled_from(["red", "the red", "Blue.", "blue"]), min_size=4, max_size=12),
    said=st.sampled_from(["red", "Blue", "green"]),
)
def test_vqa_accuracy_leaves_every_answer_out(answers: list[str], said: str) -> None:
    same = [{"red": "red", "the red": "red", "Blue.": "blue", "blue": "blue"}[answer] for answer in answers]
    subsets = [same[:i] + same[i + 1 :] for i in range(len(same))]
    expected = math.fsum(min(subset.count(said.lower()) / 3, 1) for subset in subsets) / len(subsets)
    assert accuracy(said, answers) == pytest.approx(expected, abs=1e-15)
    assert accuracy(said, answers[::-1]) == accuracy(said, answers)


def test_vqa_accuracy_of_one_answer_is_all_or_nothing() -> None:
    assert (accuracy("a dog", ["dog"]), accuracy("cat", ["dog"]), accuracy("", ["A"])) == (1, 0, 0)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A dog's half-eaten bone, 2 of 3.", "a dog's half-eaten bone 2 of 3"), ("Don\u2019t -- stop", "don't stop"),
        ("rock-'n'-roll", "rock n roll"), ("snake_case", "snake case"), ("?!", ""), ("Élan", "élan"),
    ],
)  # fmt: skip
def test_words(caption: str, found: str) -> None:
    assert " ".join(words(caption)) == found


def cider_oracle(captions: list[str], references: list[list[str]], *, sigma: float = 6.0) -> list[float]:
    """CIDEr-D, arXiv:1411.5726 sections 3 and 7, in float64, written from the formulas."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        split = words(text)
        return Counter(tuple(split[i : i + n]) for i in range(len(split) - n + 1))

    found = []
    for caption, mine in zip(captions, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            held = Counter(g for of_one in references for g in {g for text in of_one for g in grams(text, n)})

            def weighted(text: str, n: int = n, held: Counter[tuple[str, ...]] = held) -> dict[tuple[str, ...], float]:
                return {g: k * math.log(len(references) / max(1, held[g])) for g, k in grams(text, n).items()}

            c = weighted(caption)
            for text in mine:
                r = weighted(text)
                dot = math.fsum(min(c[g], r[g]) * r[g] for g in c.keys() & r.keys())
                norms = math.sqrt(sum(v * v for v in c.values())) * math.sqrt(sum(v * v for v in r.values()))
                gap = sum(grams(caption, 2).values()) - sum(grams(text, 2).values())  # the script counts 2-grams
                total += (dot / norms if norms else 0.0) * math.exp(-(gap**2) / (2 * sigma**2)) / len(mine)
        found.append(10 * total / 4)
    return found


PHRASES = st.lists(st.sampled_from("a red blue cat dog sits runs on the mat".split()), min_size=1, max_size=9).map(
    " ".join
)


@given(st.lists(st.tuples(PHRASES, st.lists(PHRASES, min_size=1, max_size=3)), min_size=2, max_size=5))
def test_cider(pairs: list[tuple[str, list[str]]]) -> None:
    captions, references = [said for said, _ in pairs], [right for _, right in pairs]
    found = cider(captions, references)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, cider_oracle(captions, references), rtol=1e-12, atol=1e-12)


def test_cider_of_the_right_words_is_ten_and_of_none_is_nought() -> None:
    right = [["a red cat sits here."], ["some dog runs there fast"], ["one bird"]]
    found = cider(["A RED CAT, SITS HERE!", "", "one fish"], right)
    assert found[0] == pytest.approx(10) and found[1] == 0
    assert 0 < found[2] < found[0]


def test_scores_in_the_order_of_the_questions() -> None:
    asked = [
        question("1", "cider", "a red cat sits here"),
        question("2", "exact", "red"),
        question("3", "vqa", *["2"] * 3, *["3"] * 7),
        question("4", "choice", "b", choices=("a", "b")),
        question("5", "cider", "a dog runs there", "the dog ran"),
        question("6", "choice", "b", choices=("B", "b")),
    ]
    said = ["a red dog sits here", "Red.", "two", "b", "the dog runs", "B"]
    replies = {q.key: Reply(q.key, text) for q, text in zip(asked, said, strict=True)}
    captions = cider_oracle([said[0], said[4]], [list(asked[0].answers), list(asked[4].answers)])
    expected = [captions[0], 1, 0.9, 1, captions[1], 0]
    np.testing.assert_allclose(scores(asked, replies), expected, rtol=1e-12)
    np.testing.assert_allclose(scores(asked[::-1], replies), expected[::-1], rtol=1e-12)


def test_a_question_without_reply() -> None:
    with pytest.raises(RecipeError, match=r"^data\.jsonl:7: question '7' has no reply$"):
        scores([question("7", "exact", "x")], {})


def test_a_question_without_answer() -> None:
    with pytest.raises(RecipeError, match=r"^data\.jsonl:7: answer is missing, so there is nothing to score by$"):
        scores([question("7", "vqa")], {"7": Reply("7", "x")})


def test_cider_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    assert scores([question("1", "exact", "x")], {"1": Reply("1", "x")}) == [1]
    asked = [question(key, "cider", "x") for key in "12"]
    check_metrics([question("1", "exact", "x")])
    for ask in (check_metrics, lambda questions: scores(questions, {key: Reply(key, "x") for key in "12"})):
        with pytest.raises(MachineError) as error:
            ask(asked)
        assert str(error.value) == "metric 'cider' needs pycocoevalcap (pip install fuse-mllm[eval])"


def test_cider_with_its_library() -> None:
    check_metrics([question(key, "cider", "x") for key in "12"])
