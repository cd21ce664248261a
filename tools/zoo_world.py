"""The little world of the zoo: scenes of things on nine places, told in words, asked about, and drawn.

A thing has a place, a color, a shape and a letter. In one scene no two things share any of them, so every question has
one answer. Everything is drawn from `random.Random`, so a seed gives the same scenes everywhere.
"""

import colorsys
import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFont

PLACES = "northwest north northeast west center east southwest south southeast".split()
COLORS = "red orange yellow green cyan blue purple pink".split()
SHAPES = "circle square triangle diamond star cross bar pillar".split()
LETTERS = "A C E H L O T X".split()
NUMBERS = "zero one two three four five six seven eight nine".split()
KINDS = {"color": COLORS, "shape": SHAPES, "letter": LETTERS}
WORDS = "what where how many things is at anything there yes no nothing say backwards . , ?".split()
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<q>", "<a>"]
VOCABULARY = [*SPECIAL, *WORDS, *KINDS, *PLACES, *COLORS, *SHAPES, *LETTERS, *NUMBERS]
UNKNOWN = "<unk>"  # stands behind the vocabulary

HUES = dict(zip(COLORS, (0.0, 0.085, 0.16, 0.34, 0.5, 0.63, 0.76, 0.88), strict=True))
GREY = (0.299, 0.587, 0.114)  # luminance of red, green and blue (ITU-R BT.601)


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    turns = [(1.0 if i % 2 == 0 else inner, math.pi * i / points - math.pi / 2) for i in range(2 * points)]
    return [(r * math.cos(turn), r * math.sin(turn)) for r, turn in turns]


# corners of the shapes, in units of a thing's radius; y points down
CORNERS = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "diamond": [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)],
    "star": _star(5, 0.5),
    "cross": [
        (-0.4, -1),
        (0.4, -1),
        (0.4, -0.4),
        (1, -0.4),
        (1, 0.4),
        (0.4, 0.4),
        (0.4, 1),
        (-0.4, 1),
        (-0.4, 0.4),
        (-1, 0.4),
        (-1, -0.4),
        (-0.4, -0.4),
    ],
    "bar": [(-1.0, -0.45), (1.0, -0.45), (1.0, 0.45), (-1.0, 0.45)],
    "pillar": [(-0.45, -1.0), (0.45, -1.0), (0.45, 1.0), (-0.45, 1.0)],
}


@dataclass(frozen=True)
class Thing:
    place: str
    color: str
    shape: str
    letter: str


Scene = tuple[Thing, ...]


def new_scene(random: Random, least: int = 3, most: int = 6) -> Scene:
    """Some things on different places, all different in every way."""
    count = random.randint(least, most)
    columns = [random.sample(values, count) for values in (PLACES, COLORS, SHAPES, LETTERS)]
    return tuple(Thing(*row) for row in zip(*columns, strict=True))


@dataclass(frozen=True)
class Asked:
    """A question about a scene: words, the answer's word, the skill it tests, and what must be seen to answer it."""

    text: str
    answer: str
    skill: str
    needs: frozenset[str]


def questions(scene: Scene, random: Random) -> list[Asked]:
    """Every question that can be asked about a scene, in random order; none has two answers."""
    found = [Asked("how many things ?", NUMBERS[len(scene)], "count", frozenset())]
    taken = {thing.place for thing in scene}
    for place in PLACES:
        found.append(Asked(f"is anything at {place} ?", "yes" if place in taken else "no", "presence", frozenset()))
    for thing in scene:
        for kind in KINDS:
            value = getattr(thing, kind)
            found.append(Asked(f"what {kind} is at {thing.place} ?", value, kind, frozenset({kind})))
            found.append(Asked(f"where is {value} ?", thing.place, kind, frozenset({kind})))
            for other in KINDS:
                if other != kind:
                    skill = "+".join(sorted((kind, other)))
                    asked = f"what {other} is {value} ?"
                    answer = f"{thing.place} {getattr(thing, other)}"
                    found.append(Asked(asked, answer, skill, frozenset({kind, other})))
    random.shuffle(found)
    return found


def caption(scene: Scene, kind: str) -> Asked:
    """What stands where, in reading order: `north red south blue`."""
    things = sorted(scene, key=lambda thing: PLACES.index(thing.place))
    words = " ".join(f"{thing.place} {getattr(thing, kind)}" for thing in things)
    return Asked("what is there ?", words, "caption", frozenset({kind}))


# --- drawing ---------------------------------------------------------------------------------------------------------

Rgb = tuple[int, int, int]
SIDE = 96  # pixels of a picture; a place is a third of it
FONT = ImageFont.load_default(size=13)


def draw(scene: Scene, random: Random) -> Image.Image:
    """The scene as an RGB picture of SIDE x SIDE pixels.

    The brightness of a thing, its size, its exact place and the background are random, so that grey tells no color.
    """
    shade = random.randint(90, 150)
    picture = Image.new("RGB", (SIDE, SIDE), (shade, shade, shade))
    pen = ImageDraw.Draw(picture)
    cell = SIDE / 3
    for thing in scene:
        row, column = divmod(PLACES.index(thing.place), 3)
        radius = random.uniform(0.36, 0.44) * cell
        x = (column + 0.5) * cell + random.uniform(-1, 1) * (cell / 2 - radius) * 0.7
        y = (row + 0.5) * cell + random.uniform(-1, 1) * (cell / 2 - radius) * 0.7
        fill, ink = _paint(thing.color, random)
        if thing.shape == "circle":
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
        else:
            pen.polygon([(x + radius * right, y + radius * down) for right, down in CORNERS[thing.shape]], fill=fill)
        _letter(pen, thing.letter, x, y, ink)
    return picture


def _paint(color: str, random: Random) -> tuple[Rgb, Rgb]:
    """A fill of the color's hue and of random luminance, and black or white for the letter on it."""
    pure = colorsys.hsv_to_rgb(HUES[color], random.uniform(0.85, 1.0), 1.0)
    luminance = sum(weight * part for weight, part in zip(GREY, pure, strict=True))
    wanted = random.choice([random.uniform(0.12, 0.25), random.uniform(0.7, 0.85)])
    if wanted <= luminance:
        parts = [part * wanted / luminance for part in pure]
    else:  # mixed with white, which keeps the hue
        share = (wanted - luminance) / (1 - luminance)
        parts = [part + (1 - part) * share for part in pure]
    red, green, blue = (round(255 * part) for part in parts)
    return (red, green, blue), ((0, 0, 0) if wanted > 0.5 else (255, 255, 255))


def _letter(pen: ImageDraw.ImageDraw, letter: str, x: float, y: float, ink: Rgb) -> None:
    pen.text((x, y), letter, fill=ink, anchor="mm", font=FONT)


if __name__ == "__main__":  # a sheet of scenes to look at
    from sys import argv

    chance = Random(0)
    sheet = Image.new("RGB", (SIDE * 6, SIDE * 3))
    for number in range(18):
        sheet.paste(draw(new_scene(chance), chance), (number % 6 * SIDE, number // 6 * SIDE))
    sheet.resize((sheet.width * 2, sheet.height * 2)).save(argv[1])
