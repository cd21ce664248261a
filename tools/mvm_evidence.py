"""What a visual memory does to questions about pictures and about words, on language models of one family.

    python tools/mvm_evidence.py build/mvm_evidence --donor build/mvm --each 50

Every row is a recipe that is merged and asked the same questions: a host with the eyes that the memory was trained
with, without it, and with it under each router. `own` is the host of the training, `form` and `expert` are others of
its family, `visionfuse` is the fusion of hue and form; where these have eyes of their own, they keep them in front of
the memory's. DONOR/control and DONOR/alone, where they are there, are two further trainings: of the image linear
without a memory, and with the memory in place of the MLP.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import click
from evidence import ZOO, Row, fill, merged
from zoo_questions import CAPTION
from zoo_text import told
from zoo_world import KINDS, SPECIAL, VOCABULARY, new_scene

SCALES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Host:
    """The language model of a table: members with their weights, those with eyes, and what it is asked for."""

    members: Mapping[str, float]
    own: tuple[str, ...]
    skills: tuple[str, ...]


SEEN, WORDS = (CAPTION, "count", "presence", "color"), ("reading", "backwards")
BOTH = (*SEEN, "shape", "color+shape", "reading")
HOSTS: Mapping[str, Host] = {
    "own": Host({"base": 1}, (), (*SEEN, *WORDS)),
    "form": Host({"form": 1}, ("form",), BOTH),
    "expert": Host({"expert": 1}, (), (*SEEN, *WORDS)),
    "visionfuse": Host({"hue": 0.5, "form": 0.5}, ("hue", "form"), BOTH),
}


def prompts(seed: int = 0) -> str:
    """Positive prompts tell scenes in words, negative ones ask to say words backwards."""
    random = Random(seed)
    positive = [" ".join(told(new_scene(random), random.sample(list(KINDS), 1), random)) for _ in range(8)]
    words = [random.sample(VOCABULARY[len(SPECIAL) :], random.randint(2, 5)) for _ in range(8)]
    negative = [f"say {' '.join(some)} backwards ?" for some in words]
    return json.dumps({"positive": positive, "negative": negative})


ROUTERS: Mapping[str, tuple[str, str]] = {  # label of a row -> what it is, the graft's entry behind its donor's folder
    **{f"additive {scale:g}": ("", f"memory, router: additive, scale: {scale:g}") for scale in SCALES},
    "token_type": ("at visual tokens alone", "memory, router: token_type"),
    "prompts": ("rows from prompts", f"memory, router: prompts, prompts: {prompts()}"),
    "arrow": ("rows from the matrices", "memory, router: arrow"),
    "none": ("in place of the MLP", "memory, router: none"),
    "softmax": ("trained mixture", "mixture, router: softmax"),
    "softmax 0.5": ("half of it", "mixture, router: softmax, scale: 0.5"),
}


def recipe(host: Host, donor: Path, graft: str = "", *, lent: bool = True) -> str:
    """The host with the eyes of a donor behind its own, and its graft: the end of its entry in YAML, or nothing.

    lent: with those eyes.
    """
    eyes = f"{{name: lent, encoder: {donor}/eyes, projector: {donor}/linear.safetensors}}"
    names = {name: "llm" if name == "base" else name for name in host.members}  # `base` has a meaning in recipes
    lines = ["members:", *(f"  {names[name]}: ZOO/{name}" for name in host.members), "language:"]
    weights = ", ".join(f"{names[name]}: {weight:g}" for name, weight in host.members.items())
    lines += [f"  method: linear\n  weights: {{{weights}}}", "vision:", *(f"  - {name}" for name in host.own)]
    lines += [f"  - {eyes}"] * lent
    return "\n".join([*lines, *(["grafts:", f"  - {{name: memory, from: {donor}/{graft}}}"] if graft else [])]) + "\n"


def rows(host: Host, donor: Path, bare: Path) -> list[Row]:
    """The rows of one table. bare: the folder of the host with the eyes and without a memory, the baseline."""
    found = [Row("no memory", "eyes and image linear", parent=str(bare))]
    if host.own:
        found.append(Row("plain", "without those eyes", recipe=recipe(host, donor, lent=False)))
    for label, (why, options) in ROUTERS.items():
        found.append(Row(label, why, recipe=recipe(host, donor, options)))
    if (donor / "control").is_dir():
        found.append(Row("control", "linear trained without a memory", recipe=recipe(host, donor / "control")))
    if (donor / "alone").is_dir():
        for label in ("none", "softmax"):
            why, options = ROUTERS[label]
            told = f"{why}; trained in its place"
            found.append(Row(f"alone, {label}", told, recipe=recipe(host, donor / "alone", options)))
    return found


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--donor", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--zoo", type=click.Path(file_okay=False, exists=True, path_type=Path), default=ZOO, show_default=True)
@click.option("--table", "tables", type=click.Choice(list(HOSTS)), multiple=True, default=list(HOSTS))
@click.option("--split", type=click.Choice(["tune", "test"]), default="test", show_default=True)
@click.option("--each", type=click.IntRange(2, 999), default=50, show_default=True, help="Questions of every skill.")
def main(out: Path, donor: Path, zoo: Path, tables: Sequence[str], split: str, each: int) -> None:
    """Fill the tables and write them under OUT as JSON and Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    donor, zoo = donor.resolve(), zoo.resolve()
    for name in tables:
        host = HOSTS[name]
        (out / name).mkdir(exist_ok=True)
        bare = merged(Row("bare", "", recipe=recipe(host, donor)), zoo, (out / name).resolve())
        found = fill(rows(host, donor, bare), host.skills, zoo, out / name, split, each)
        (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
