"""What the zoo's language models read: scenes told in words, with questions and answers, as token ids.

A lesson is a pair of rows: ids, and labels that are UNSEEN where nothing can be known yet.
"""

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor
from zoo_world import KINDS, PLACES, SPECIAL, VOCABULARY, Asked, Scene, new_scene, questions

IDS = {word: number for number, word in enumerate(VOCABULARY)}
PAD, BEGIN, END, IMAGE, ASK, ANSWER = (IDS[word] for word in SPECIAL)
UNSEEN = -100  # a label that no loss is taken of
Lesson = tuple[list[int], list[int]]

# how likely a skill's questions are taken before others; there are many about places and only one count
WEIGHT = {"count": 3.0, "presence": 0.5, "color+shape": 1.5, "color+letter": 1.5, "letter+shape": 1.5}


def ids_of(words: str) -> list[int]:
    return [IDS[word] for word in words.split()]


def repeated(random: Random) -> Lesson:
    """Random words, said twice: what teaches a language model fastest to look back."""
    count = random.randint(8, 20)
    said = [random.randrange(len(SPECIAL), len(VOCABULARY)) for _ in range(count)]
    return [BEGIN, *said, *said], [UNSEEN] * (count + 2) + said[1:]


def looked_up(random: Random, *, kinds: Sequence[str], back: bool) -> Lesson:
    """Facts of a scene in any order, then some of them again.

    A fact is a place and a value. Told again it is the place, the kind where there are several, and the value; with
    `back` sometimes the value, `where`, and the place.
    """
    scene = new_scene(random)
    facts = [(thing.place, kind, getattr(thing, kind)) for thing in scene for kind in kinds]
    random.shuffle(facts)
    ids = [BEGIN, *(IDS[word] for place, _, value in facts for word in (place, value)), IDS["."]]
    labels = [UNSEEN] * len(ids)
    for place, kind, value in random.choices(facts, k=10):
        turned = back and random.random() < 0.5
        first, asked, last = (value, "where", place) if turned else (place, kind, value)
        prompt = [IDS[first], IDS[asked]] if len(kinds) > 1 else [IDS[first]]
        ids += [*prompt, IDS[last]]
        labels += [*[UNSEEN] * len(prompt), IDS[last]]
    return ids, labels


def told(scene: Scene, kinds: Sequence[str], random: Random) -> list[str]:
    """The scene in words: a block for each kind, or one for all; things in random order, sometimes empty places too."""
    groups = [[kind] for kind in kinds] if random.random() < 0.75 else [list(kinds)]
    if random.random() < 0.2:
        groups.append([random.choice(groups[0])])  # said twice
    empty = [place for place in PLACES if place not in {thing.place for thing in scene}]
    words: list[str] = []
    for group in groups:
        facts = [[thing.place, *(getattr(thing, kind) for kind in group)] for thing in scene]
        if random.random() < 0.4:
            facts += [[place, "nothing"] for place in empty]
        random.shuffle(facts)
        words += [word for fact in facts for word in fact] + ["."]
    return words


def turn(asked: Asked) -> Lesson:
    """A question and its answer."""
    prompt, answer = [ASK, *ids_of(asked.text), ANSWER], [*ids_of(asked.answer), END]
    return prompt + answer, [UNSEEN] * len(prompt) + answer


def talk(begin: list[int], scene: Scene, kinds: Sequence[str], random: Random, turns: int) -> Lesson:
    """Questions about a scene that need the sight of some kinds only, with their answers.

    begin: what the scene is told or seen by; it stands in the first question.
    """
    asked = [one for one in questions(scene, random) if one.needs <= set(kinds)]
    ids, labels = [BEGIN, ASK, *begin], [UNSEEN] * (2 + len(begin))
    for one in sorted(asked, key=lambda one: random.random() * WEIGHT.get(one.skill, 1.0))[-turns:]:
        more, answers = turn(one)
        skip = 1 if ids[-1] != END else 0
        ids += more[skip:]
        labels += answers[skip:]
    return ids, labels


def listed(begin: list[int], scene: Scene, kind: str, random: Random, pairs: int = 14) -> Lesson:
    """What a scene is seen by, then what stands where, and where what stands: a caption, in effect."""
    values = dict.fromkeys(PLACES, "nothing") | {thing.place: getattr(thing, kind) for thing in scene}
    ids, labels = [BEGIN, ASK, *begin, IDS["."]], [UNSEEN] * (3 + len(begin))
    for _ in range(pairs):
        place = random.choice(PLACES if random.random() < 0.3 else [thing.place for thing in scene])
        turned = values[place] != "nothing" and random.random() < 0.5
        words = (values[place], "where", place) if turned else (place, kind, values[place])
        ids += [IDS[word] for word in words]
        labels += [UNSEEN, UNSEEN, ids[-1]]
    return ids, labels


def beside_words(image: list[int], scene: Scene, kind: str, random: Random) -> Lesson:
    """A picture that shows one kind, and words that tell others, in any order; questions that need both or either."""
    others = [other for other in KINDS if other != kind]
    words = random.sample(others, random.choice((1, 1, 2)))
    parts = [image, ids_of(" ".join(told(scene, words, random)))]
    random.shuffle(parts)
    return talk([*parts[0], *parts[1]], scene, [kind, *words], random, 6)


def conversation(random: Random, turns: int = 6) -> Lesson:
    """A scene in words, and questions that the words answer."""
    scene = new_scene(random)
    kinds = random.sample(list(KINDS), random.choice((1, 2, 2, 3, 3)))
    begin = [IDS[word] for word in told(scene, kinds, random)]
    return talk(begin, scene, kinds, random, turns)


def backwards(random: Random) -> Lesson:
    """Some words, and the same from the last to the first: a skill of text alone."""
    words = random.sample(VOCABULARY[len(SPECIAL) :], random.randint(2, 5))
    asked = Asked(f"say {' '.join(words)} backwards ?", " ".join(reversed(words)), "backwards", frozenset())
    ids, labels = turn(asked)
    return [BEGIN, *ids], [UNSEEN, *labels]


def padded(rows: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
    """Ids and labels [B, L], padded on the right; what is padded has no label, and nothing after it."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [UNSEEN] * (length - len(row)) for _, row in rows])
    return ids, labels
