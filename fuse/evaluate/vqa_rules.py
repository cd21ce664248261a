"""The VQA evaluation: how answers are made alike, and how many people must agree.

Rules of https://visualqa.org/evaluation.html and of the script it names (GT-Vision-Lab/VQA, vqaEval.py), applied to
the model's answer and to the people's. Two choices are ours. The script leaves answers as they are where all people
agree; we follow the page, which makes no such exception. And a text of which nothing would be left ("A", "-") stays
itself in lower case, so that the letter A is not the same as silence.
"""

import re
from collections.abc import Sequence

AGREEING = 3  # people who must agree for a full score
ARTICLES = frozenset(["a", "an", "the"])
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # not the apostrophe, nor the colon of 2:50 pm
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # not that of a decimal

# The contractions of the script. A word that lacks one apostrophe of one of them is taken for it.
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in CONTRACTED for i, letter in enumerate(word) if letter == "'"}


def normalised(answer: str) -> str:
    """The answer as it is compared: ``"The two dogs, I think."`` becomes ``"2 dogs i think"``."""
    plain = answer.replace("\n", " ").replace("\t", " ").strip()
    found = (NUMBERS.get(word, word) for word in _without_punctuation(plain).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in found if word not in ARTICLES) or plain.lower()


def _without_punctuation(text: str) -> str:
    """Each mark becomes a space; it vanishes where it stands beside one anywhere, or a comma is inside a number."""
    joined = _COMMA_IN_NUMBER.search(text) is not None
    left = text
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if joined or beside else " ")
    return _PERIOD.sub("", left)


def accuracy(said: str, answers: Sequence[str]) -> float:
    """VQA accuracy in [0, 1]: the mean, over each answer left out, of min(others that equal `said` / 3, 1).

    answers: of ten people in VQA v2, and of 4 at least. One answer has no others; then 1 where they are equal, else 0
    (our choice).
    """
    mine = normalised(said)
    agree = [normalised(answer) == mine for answer in answers]
    if len(agree) == 1:
        return float(agree[0])
    count, matches = len(agree), sum(agree)
    left_out_agrees = matches * min(matches - 1, AGREEING)
    left_out_differs = (count - matches) * min(matches, AGREEING)
    return (left_out_agrees + left_out_differs) / (AGREEING * count)
