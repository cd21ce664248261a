"""The emoji as captions and questions: which names are trained on, which are held out, and what is asked.

Trained on is one artwork (twitter) of four names in five. Asked is about the other artwork (google) of the same names,
and about names that no training picture had. Every name belongs, by a hash, to one of ten parts: 0 is asked about when
choices of a composition are made (`tune`), 1 in the test; both are held out from training. Of the other eight, even
ones are asked about in google's artwork in `tune`, odd ones in the test.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

TRAINED_ARTWORK, OTHER_ARTWORK = "twitter", "google"
NAME_ASK, GROUP_ASK = "What is this?", "What kind of thing is this?"
SKILLS = ("name, new artwork", "say it, new artwork", "name, new emoji", "kind, new emoji")
PARTS, TUNE, TEST = 10, 0, 1


@dataclass(frozen=True)
class Emoji:
    """number: of its picture file. kind: Unicode's category, in lower case."""

    number: int
    name: str
    kind: str
    near: str  # Unicode's subcategory

    @property
    def part(self) -> int:
        return sha256(self.name.encode()).digest()[0] % PARTS

    @property
    def held_out(self) -> bool:
        return self.part in (TUNE, TEST)

    def picture(self, artwork: str) -> str:
        return f"images/{artwork}/{self.number}.png"


def plain(name: str) -> str:
    """A name in lower case without marks: "Egypt Flag" -> "egypt flag", "E-MAIL SYMBOL" -> "e-mail symbol"."""
    return " ".join(re.sub(r"[^\w&-]+", " ", re.sub("['\u2019]", "", name.lower())).split())


def read_emoji(folder: Path) -> list[Emoji]:
    """The emoji that tools/real_parts.py wrote; of those with one name the first."""
    rows = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    found: dict[str, Emoji] = {}
    for number, row in enumerate(rows):
        kind = row["category"].lower().replace("&", "and")
        found.setdefault(plain(row["name"]), Emoji(number, plain(row["name"]), kind, row["subcategory"]))
    return list(found.values())


def trained(emoji: Sequence[Emoji]) -> list[Emoji]:
    return [one for one in emoji if not one.held_out]


def asked(emoji: Sequence[Emoji], split: str, each: int) -> list[dict[str, object]]:
    """`each` questions of every skill, as rows of a data file; the same for the same split and number.

    Wrong names are of the same kind and artwork (of the same part of the split); wrong kinds are any three others.
    """
    random, held = Random(f"real {split}"), TUNE if split == "tune" else TEST
    new = [one for one in emoji if one.part == held]
    old = [one for one in emoji if not one.held_out and one.part % 2 == held]
    kinds = sorted({one.kind for one in emoji})
    rows: list[dict[str, object]] = []
    for skill, pool in zip(SKILLS, (old, old, new, new), strict=True):
        for one in random.sample(pool, min(each, len(pool))):
            row: dict[str, object] = {
                "id": f"{skill} {one.number}",
                "image": one.picture(OTHER_ARTWORK),
                "skill": skill,
            }
            row |= {"question": NAME_ASK, "answer": one.name}
            if skill.startswith("kind"):
                wrong = random.sample([kind for kind in kinds if kind != one.kind], 3)
                row |= {"question": GROUP_ASK, "answer": one.kind, "choices": _mixed([one.kind, *wrong], random)}
            elif skill.startswith("name"):
                wrong = random.sample([x.name for x in pool if x.kind == one.kind and x is not one], 3)
                row["choices"] = _mixed([one.name, *wrong], random)
            else:
                row["metric"] = "exact"
            rows.append(row)
    return rows


def _mixed(texts: list[str], random: Random) -> list[str]:
    return random.sample(texts, len(texts))


def write_questions(folder: Path, split: str, each: int) -> Path:
    """FOLDER/SPLIT.jsonl, whose pictures lie beside it."""
    file = folder / f"{split}.jsonl"
    rows = asked(read_emoji(folder), split, each)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
