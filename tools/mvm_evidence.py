"""What a visual memory does to questions about pictures and about words, on three language models of one family.

    python tools/mvm_evidence.py build/mvm --donor recipes/zoo/memory --each 100

Every row is a recipe that is merged and asked the same questions: the language model with the eyes that the memory was
trained with, without it, and with it under each router. `own` is the host of the training, `form` and `expert` are
other members of its family; `form` keeps its own eyes beside them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import click
from evidence import ZOO, Row, fill, merged
from zoo_text import told
from zoo_world import KINDS, SPECIAL, VOCABULARY, new_scene

SCALES = (0.25, 0.5, 1.0)
HOSTS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {  # table -> host, its own eyes, skills
    "own": ("base", (), ("count", "presence", "color", "reading", "backwards")),
    "form": ("form", ("form",), ("count", "presence", "color", "shape", "color+shape", "reading")),
    "expert": ("expert", (), ("count", "presence", "color", "reading", "backwards")),
}


def recipe(host: str, own: Sequence[str], donor: Path, graft: str = "", eyes: str = "memory") -> str:
    """The host with the memory's eyes behind its own, and a graft. graft: its entry in YAML, without braces."""
    there = donor / ("" if eyes == "memory" else eyes)
    seen = [*own, f"{{name: hue, encoder: {there}/eyes, projector: {there}/linear.safetensors}}"]
    name = "llm" if host == "base" else host  # `base` has a meaning in recipes
    lines = [f"members: {{{name}: ZOO/{host}}}", "language:", "  method: linear", f"  weights: {{{name}: 1}}"]
    lines += ["vision:", *(f"  - {entry}" for entry in seen)]
    return "\n".join([*lines, *(["grafts:", f"  - {{{graft}}}"] if graft else [])]) + "\n"


def prompts(seed: int = 0) -> str:
    """Positive prompts tell scenes in words, negative ones ask to say words backwards."""
    random = Random(seed)
    positive = [" ".join(told(new_scene(random), random.sample(list(KINDS), 1), random)) for _ in range(8)]
    words = [random.sample(VOCABULARY[len(SPECIAL) :], random.randint(2, 5)) for _ in range(8)]
    negative = [f"say {' '.join(some)} backwards ?" for some in words]
    return json.dumps({"positive": positive, "negative": negative})


def rows(host: str, own: Sequence[str], donor: Path, bare: Path) -> list[Row]:
    """The rows of one table. bare: the folder of the host with the eyes and without a memory, the baseline."""
    memory, mixture = f"from: {donor}/memory, name: memory", f"from: {donor}/mixture, name: memory"
    grafts = {
        **{f"additive {scale:g}": f"{memory}, router: additive, scale: {scale:g}" for scale in SCALES},
        "token_type": f"{memory}, router: token_type",
        "prompts": f"{memory}, router: prompts, prompts: {prompts()}",
        "arrow": f"{memory}, router: arrow",
        "none": f"{memory}, router: none",
        "softmax": f"{mixture}, router: softmax",
        "softmax 0.5": f"{mixture}, router: softmax, scale: 0.5",
    }
    why = {"none": "memory in place of the MLP", "softmax": "trained mixture", "softmax 0.5": "half of it"}
    found = [Row("no memory", "eyes and image linear", parent=str(bare))]
    found += [Row(name, why.get(name, ""), recipe=recipe(host, own, donor, graft)) for name, graft in grafts.items()]
    if (donor / "control").is_dir():
        told = "linear trained without a memory"
        found.append(Row("control", told, recipe=recipe(host, own, donor, eyes="control")))
    return found


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--donor", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--zoo", type=click.Path(file_okay=False, exists=True, path_type=Path), default=ZOO, show_default=True)
@click.option("--table", "tables", type=click.Choice(list(HOSTS)), multiple=True, default=list(HOSTS))
@click.option("--split", type=click.Choice(["tune", "test"]), default="test", show_default=True)
@click.option("--each", type=click.IntRange(2, 999), default=100, show_default=True, help="Questions of every skill.")
def main(out: Path, donor: Path, zoo: Path, tables: Sequence[str], split: str, each: int) -> None:
    """Fill the tables and write them under OUT as JSON and Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    donor, zoo = donor.resolve(), zoo.resolve()
    for name in tables:
        host, own, skills = HOSTS[name]
        (out / name).mkdir(exist_ok=True)
        bare = merged(Row("bare", "", recipe=recipe(host, own, donor)), zoo, (out / name).resolve())
        found = fill(rows(host, own, donor, bare), skills, zoo, out / name, split, each)
        (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
