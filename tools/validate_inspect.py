"""Does the score of `fuse inspect pairs` tell which members gain from fusion? Asked on every pair of trained zoos.

    python tools/validate_inspect.py build/zoo0 build/zoo1 build/zoo2 --across --out build/validate

The gain of a pair is the score of its fused model (VisionFuse: tokens of both, half of each task vector; the mean over
both orders of the branches) minus that of its better parent, at questions of the test split. Images that are inspected
are of the tuning split. Both splits and all models come from the zoos' own scripts.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import click
import numpy as np
from evidence import Row, _scores, recipe
from rank_correlation import correlation
from stretched import stretched
from zoo_questions import SKILLS, TEXT_SKILLS, write_questions

from fuse.align.pairs.compatibility import PARTS

SEES = {"hue": "color", "form": "shape", "sign": "letter", "stranger": "shape", "expert": ""}
MEASURES = ("score", "fit", *PARTS)
GAINS = ("all", "both")
STRETCHES = (2, 4, 8, 16)
HEADS = ("zoo", "pair", "score", "fit", *PARTS, "all", "both", "balanced")


@dataclass(frozen=True)
class Pair:
    """Two members of zoos, by name and folder, over the base of the first. zoo: what it is listed under. kind: "zoo",
    "across" two of them, or "stretched": the second one's task vector, and its LLM with it."""

    kind: str
    zoo: str
    base: Path
    names: tuple[str, str]
    folders: tuple[Path, Path]

    @property
    def family(self) -> bool:
        """Whether both were trained from that base, and are as they were trained."""
        return self.kind == "zoo" and "stranger" not in self.names

    @property
    def joint(self) -> str:
        """The skill that needs the sights of both, "" where there is none."""
        a, b = (SEES[name] for name in self.names)
        return next((skill for skill in (f"{a}+{b}", f"{b}+{a}") if skill in SKILLS), "")


def pairs_of(zoos: Sequence[Path], across: bool, stretches: Path | None) -> Iterator[Pair]:
    """Pairs within each zoo; across them, one's hue with another's form, over the base of hue; and hue with copies of
    form that are stretched, written under `stretches`."""
    for zoo in zoos:
        for a, b in combinations([name for name in SEES if (zoo / name / "config.json").is_file()], 2):
            yield Pair("zoo", zoo.name, zoo / "base", (a, b), (zoo / a, zoo / b))
    for one in zoos if across else ():
        for other in (zoo for zoo in zoos if zoo != one):
            yield Pair(
                "across", f"{one.name}, {other.name}", one / "base", ("hue", "form"), (one / "hue", other / "form")
            )
    for zoo in zoos if stretches else ():
        for times in STRETCHES:
            form = stretched(zoo / "form", zoo / "base", times, stretches / f"{zoo.name}_x{times}" / "form")
            yield Pair("stretched", f"{zoo.name}, x{times}", zoo / "base", ("hue", "form"), (zoo / "hue", form))


class Answers:
    """Scores of parents and fused models at the same questions, kept in a file, so that a call goes on with them."""

    def __init__(self, out: Path, each: int) -> None:
        from fuse.evaluate.questions import read_questions

        self.out, self.file = out, out / f"answers_{each}.json"
        self.data = write_questions(out / f"questions_{each}", "test", each, (*SKILLS, *TEXT_SKILLS))
        self.asked = read_questions(self.data)
        self.known: dict[str, list[float | None]] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def of(self, row: Row, zoo: Path) -> np.ndarray:
        """float64 [questions]; 0 at those with a picture for who cannot see."""
        key = f"{zoo}: {row.label}"
        if key not in self.known:
            began = time.monotonic()
            scores = _scores(row, self.asked, self.data, zoo, self.out / zoo.name)
            self.known[key] = np.nan_to_num(scores).tolist()
            self.file.write_text(json.dumps(self.known))
            click.echo(f"{key}: {np.mean(self.known[key]):.3f}, {time.monotonic() - began:.0f} s", err=True)
        return np.array(self.known[key], dtype=np.float64)

    def parent(self, folder: Path) -> np.ndarray:
        return self.of(Row(folder.name, "", parent=folder.name, blind=not SEES[folder.name]), folder.parent)

    def fused(self, pair: Pair, weights: Sequence[float], label: str, orders: int = 2) -> np.ndarray:
        """The mean over the orders of the branches; one order where one member alone sees."""
        zoo = self.out / "zoos" / "_".join(pair.zoo.split(", "))
        seeing = [name for name in pair.names if SEES[name]]
        for name, folder in (("base", pair.base), *zip(pair.names, pair.folders, strict=True)):
            (zoo / name).parent.mkdir(parents=True, exist_ok=True)
            if not (zoo / name).is_symlink():
                (zoo / name).symlink_to(folder)
        found = []
        for vision in (seeing, seeing[::-1])[: orders if len(seeing) > 1 else 1]:
            text = recipe(vision, dict(zip(pair.names, weights, strict=True)))
            (self.out / zoo.name).mkdir(exist_ok=True)
            others = [name for name in pair.names if name not in vision]
            found.append(self.of(Row(f"{label} {' '.join([*vision, *others])}", "", recipe=text), zoo))
        return np.mean(found, axis=0)

    def gains(self, pair: Pair, fused: np.ndarray) -> dict[str, float | None]:
        """Over all questions, and over those that need both; in points of 100."""
        told: dict[str, float | None] = {}
        for name, skill in (("all", None), ("both", pair.joint)):
            some = np.array([skill in (None, one.skill) for one in self.asked])
            better = max(self.parent(folder)[some].mean() if some.any() else 0 for folder in pair.folders)
            told[name] = float(100 * (fused[some].mean() - better)) if some.any() else None
        return told


def measured(pair: Pair, images: Path) -> dict[str, Any]:
    """The pair as `fuse inspect pairs` tells it."""
    from fuse.align.pairs.rank import rank

    return rank([str(folder) for folder in pair.folders], str(pair.base), images)["pairs"][0]


def numbers(row: Mapping[str, Any], name: str) -> float | None:
    """A measure of a line, by its head."""
    return row["inspect"]["parts"][name]["value"] if name in PARTS else row["inspect"][name]


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of every measure with every gain, over the pairs that have both."""
    found: dict[str, dict[str, Any]] = {}
    for name in MEASURES:
        for gain in GAINS:
            both = [(numbers(row, name), row["gains"][gain]) for row in rows]
            known = [(x, y) for x, y in both if x is not None and y is not None]
            found.setdefault(name, {})[gain] = correlation([x for x, _ in known], [y for _, y in known])
    return found


@click.command()
@click.argument("zoos", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("build/validate"))
@click.option("--each", type=click.IntRange(2, 999), default=50, show_default=True, help="Questions of every skill.")
@click.option("--images", "count", type=click.IntRange(2, 999), default=10, show_default=True, help="Of every skill.")
@click.option("--across", is_flag=True, help="Also pairs of members of two zoos, which have two bases.")
@click.option("--stretched", "longer", is_flag=True, help="Also hue with copies of form whose task vector is longer.")
@click.option("--balanced", is_flag=True, help="Also fuse with the balanced weights that are suggested.")
def main(zoos: Sequence[Path], out: Path, each: int, count: int, across: bool, longer: bool, balanced: bool) -> None:
    """Inspect and fuse every pair, and tell how the one goes with the other."""
    out = out.resolve()
    images = write_questions(out / "images", "tune", count, SKILLS).parent
    answers, rows = Answers(out, each), []
    stretches = out / "stretched" if longer else None
    for pair in pairs_of([zoo.resolve() for zoo in zoos], across, stretches):
        told = measured(pair, images)
        gains = answers.gains(pair, answers.fused(pair, (0.5, 0.5), "half"))
        rows.append({
            "kind": pair.kind, "zoo": pair.zoo, "a": pair.names[0], "b": pair.names[1], "family": pair.family,
            "inspect": told, "gains": gains,
        })  # fmt: skip
        if balanced and told["weights"]:
            weights = list(told["weights"]["balanced"]["weights"].values())
            rows[-1]["balanced"] = answers.gains(pair, answers.fused(pair, weights, "balanced"))
    own = [row for row in rows if row["kind"] == "zoo"]
    groups = {name: [row for row in own if row["zoo"] == name] for name in dict.fromkeys(row["zoo"] for row in own)}
    groups["one family"] = [row for row in own if row["family"]]
    groups["one family that sees"] = [row for row in groups["one family"] if SEES[row["b"]]]
    groups["zoos"] = own
    groups["stretched"] = [row for row in rows if row["kind"] == "stretched"]
    groups["all"] = rows
    found = {name: correlations(some) for name, some in groups.items() if len(some) > 2}
    result = {"each": each, "images": count * len(SKILLS), "pairs": rows, "correlations": found}
    (out / "validate.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [*table(rows), "", *table_of(found)]
    (out / "validate.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo("\n".join(lines))


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a pair, in Markdown."""
    lines = [_line(HEADS), _line(["---"] * len(HEADS))]
    for row in sorted(rows, key=lambda row: -(numbers(row, "score") or 0)):
        parts = [_told(numbers(row, name)) for name in MEASURES]
        gains = [_told(value, "+.1f") for value in (*row["gains"].values(), row.get("balanced", {}).get("all"))]
        lines.append(_line([row["zoo"], f"{row['a']}, {row['b']}", *parts, *gains]))
    return lines


def table_of(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A line for each group of pairs and gain, a column for each measure: rho (p, n)."""
    lines = [_line(["pairs: gain", *MEASURES]), _line(["---"] * (len(MEASURES) + 1))]
    for group, gain in product(found, GAINS):
        lines.append(_line([f"{group}: {gain}", *(_rho(found[group][name][gain]) for name in MEASURES)]))
    return lines


def _rho(cell: Mapping[str, Any]) -> str:
    return f"- (n {cell['n']})" if cell["rho"] is None else f"{cell['rho']:+.2f} (p {cell['p']:.2g}, n {cell['n']})"


def _told(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
