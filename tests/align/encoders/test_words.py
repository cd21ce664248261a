"""What numbers are said to mean: every threshold from both sides."""

import pytest

from fuse.align.encoders.pair import SAME_SPACE, space_between
from fuse.align.encoders.words import best_match, overall, pair_sentences
from tests.align.documents import document, pair


@pytest.mark.parametrize(
    ("cka", "said"),
    [
        (0.9, "a and b see nearly the same: CKA 0.90 at their last layers, at least 0.9."),
        (0.899, "a and b see images alike: CKA 0.90 at their last layers, at least 0.5."),
        (0.49, "a and b see images alike in part: CKA 0.49 at their last layers, at least 0.2."),
        (0.19, "a and b see images differently: CKA 0.19 at their last layers, below 0.2."),
        (-0.01, "a and b see images differently: CKA -0.01 at their last layers, below 0.2."),
    ],
)
def test_likeness(cka, said):
    one = pair({"cka": cka})
    assert pair_sentences(one, document(one))[0] == said


def test_neighbours_beside_chance():
    few, many = (pair({"cka": 0.5, "knn": knn}, {"knn": {"chance": 0.1}}) for knn in (0.2, 0.31))
    assert pair_sentences(few, document(few))[1] == (
        "Of an image's 10 nearest images 2.0 are the same to both, no more than chance (1.0, to twice that)."
    )
    assert pair_sentences(many, document(many))[1] == (
        "Of an image's 10 nearest images 3.1 are the same to both, more than chance (1.0, to twice that)."
    )


@pytest.mark.parametrize(
    ("cka", "other", "said"),
    [
        (0.5, 0.25, "Much of that is where tokens lie, not what they see: the CKA between the same cells of different "
         "images is 0.25."),
        (0.5, 0.24, "The CKA between the same cells of different images is 0.24."),
        (0.19, 0.18, "The CKA between the same cells of different images is 0.18."),
    ],
)  # fmt: skip
def test_likeness_of_places(cka, other, said):
    one = pair({"cka": cka}, {"cka": {"other_images": other}})
    assert pair_sentences(one, document(one))[1] == said


def test_a_single_image_says_nothing_of_others():
    one = pair({"cka": 0.5})
    assert pair_sentences(one, {**document(one), "images": 1})[1:] == [
        "With a single image that is between the places in it, and says nothing of what both see."
    ]


def test_chance_in_svcca():
    much, little = (pair({"cka": 0.1, "svcca": 0.5}, {"svcca": {"chance": chance}}) for chance in (0.25, 0.24))
    assert pair_sentences(much, document(much))[1:] == [
        "Of their SVCCA of 0.50 chance gives up to 0.25: more images make that less."
    ]
    assert len(pair_sentences(little, document(little))) == 1


def test_where_tokens_lie_and_how_long_they_are():
    behind = {"cosine_of_means": 0.49, "mmd": 0.2}
    one = pair({}, projector=behind, details={"mmd": {"null": 0.01}})
    assert pair_sentences(one, document(one, norms=(2.0, 4.1))) == [
        "Behind the projectors the cosine of their means is 0.49, below 0.5, so their tokens lie in different regions.",
        "Their tokens are apart by MMD^2 0.200, more than three times what chance gives (0.0100).",
        "Tokens of b are 2.0 times as long as those of a, at least 2 times: `norm: match` on a branch evens them.",
    ]
    one = pair({}, projector={"cosine_of_means": 0.5, "mmd": -0.03}, details={"mmd": {"null": 0.01}})
    assert pair_sentences(one, document(one, norms=(2.0, 3.9))) == [
        "Behind the projectors the cosine of their means is 0.50, at least 0.5.",
        "Their tokens are apart by MMD^2 -0.030, no more than three times what chance gives (0.0100).",
    ]


def test_what_is_not_measured_is_said_once_for_each_reason():
    one = pair({}, projector={}, unmeasured={"mmd": "needs x", "cosine_of_means": "needs x", "svcca": "needs y"})
    one["encoder"]["unmeasured"] = {"mmd": "towers share no space", "knn": "needs z"}
    assert pair_sentences(one, document(one)) == [
        "Not measured at the encoder of a and b: knn (needs z).",
        "Not measured at the projector of a and b: mmd, cosine_of_means (needs x).",
        "Not measured at the projector of a and b: svcca (needs y).",
    ]


def test_the_most_and_the_least_alike():
    near, far = pair({"cka": 0.8}), {**pair({"cka": 0.1}), "b": "c"}
    told = {**document(near), "pairs": [near, far], "images": 1200}
    assert overall(told)[0] == "1,200 images."
    assert overall(told)[-1] == "Most alike are a and b (CKA 0.80), least alike a and c (0.10)."
    assert overall(document(near)) == ["4 images."]


def test_many_skipped_files_are_counted():
    one = pair({})
    told = {**document(one), "skipped": [{"file": f"{i}.png", "why": "is empty (0 bytes)"} for i in range(23)]}
    assert overall(told)[1].startswith("23 skipped: 0.png (is empty (0 bytes)), 1.png")
    assert overall(told)[1].endswith("19.png (is empty (0 bytes)), and 3 more.")


def test_the_best_layers():
    assert best_match({"unbiased": [[0.1, 0.7], [0.2, 0.3]]}) == (0, 1, 0.7)
    assert best_match({"unmeasured": "needs"}) is None


def test_a_common_space_is_that_of_like_embeddings():
    import torch

    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    table[3] = 0
    other = torch.randn(60, 16, generator=torch.Generator().manual_seed(1))
    names = ("a", "b")
    cosine, why = space_between((table, torch.cat([table + 0.1 * other[:50], other])), (8, 8), names)
    assert cosine > 0.9 and why == ""
    cosine, why = space_between((table, other), (8, 8), names)
    assert abs(cosine) < SAME_SPACE
    assert why == f"needs a common space, and the embeddings of a and b have a mean cosine of {cosine:.2f}"
    assert space_between((table, table), (8, 9), names) == (
        None, "needs a common space, and tokens have 8 and 9 numbers",
    )  # fmt: skip
    assert space_between((table, None), (8, 8), names)[1] == "needs a common space, and b has no language model"
