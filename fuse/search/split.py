"""Questions for tuning and questions for testing, apart by skill, by image and by seed."""

from collections.abc import Sequence

from fuse.errors import RecipeError
from fuse.evaluate.questions import Question


def split(questions: Sequence[Question], share: float, *, seed: int) -> tuple[list[Question], list[Question]]:
    """(tuning, testing): of every skill about `share` of its questions are for testing, drawn by the seed.

    Both keep the order of the file. Questions about the same image go to the same part, so that no image of the
    testing part was seen in tuning; where that would leave nothing for testing (one image for all), they are drawn
    one by one (`shared_images` counts them). Of each skill at least one question stays for tuning.
    Raises RecipeError where one of the parts would be empty, or hold a single caption, which has no CIDEr.
    """
    held = _held(_groups(questions), share, seed) or _held([[question] for question in questions], share, seed)
    if not held:
        raise RecipeError(f"--holdout {share:g} of {len(questions)} questions leaves none for testing",
                          hint="more questions, --test FILE, or --holdout 0 for no test")  # fmt: skip
    parts = [q for q in questions if q.key not in held], [q for q in questions if q.key in held]
    for name, part in zip(("tuning", "testing"), parts, strict=True):
        if sum(question.metric == "cider" for question in part) == 1:
            raise RecipeError(f"--holdout {share:g} leaves a single caption for {name}, and CIDEr needs 2",
                              hint="more captions, another --seed, --test FILE, or --holdout 0")  # fmt: skip
    return parts


def is_labelled(questions: Sequence[Question]) -> bool:
    """Whether there are questions, and all of them have right answers."""
    return bool(questions) and all(question.answers for question in questions)


def other_scale(questions: Sequence[Question]) -> Question | None:
    """The first question whose metric has another scale than that of the first: CIDEr has its own. None if none."""
    return next((one for one in questions if (one.metric == "cider") != (questions[0].metric == "cider")), None)


def shared_images(tuning: Sequence[Question], testing: Sequence[Question]) -> int:
    """How many images both parts ask about."""
    first, second = ({path.resolve() for q in part for path in q.images} for part in (tuning, testing))
    return len(first & second)


def _groups(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that share an image, together; those without an image alone."""
    group_of: dict[object, list[Question]] = {}
    for question in questions:
        joined = [question]
        keys: list[object] = [path.resolve() for path in question.images] or [("line", question.line)]
        for old in {id(group_of[key]): group_of[key] for key in keys if key in group_of}.values():
            joined += old
        for member in joined:
            for key in member.images:
                group_of[key.resolve()] = joined
        group_of.update(dict.fromkeys(keys, joined))
    return list({id(group): group for group in group_of.values()}.values())


def _held(groups: Sequence[Sequence[Question]], share: float, seed: int) -> set[str]:
    """Keys for testing: groups in an order by the seed, each where no skill gets more than its share by it."""
    import numpy

    left: dict[str, int] = {}
    for skill in {question.skill for group in groups for question in group}:
        count = sum(question.skill == skill for group in groups for question in group)
        left[skill] = min(round(share * count), count - 1)
    held: set[str] = set()
    for number in numpy.random.default_rng(seed).permutation(len(groups)):
        group = groups[number]
        counts = {question.skill: sum(other.skill == question.skill for other in group) for question in group}
        if all(count <= left[skill] for skill, count in counts.items()):
            held |= {question.key for question in group}
            for skill, count in counts.items():
                left[skill] -= count
    return held
