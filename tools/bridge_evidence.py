"""What a bridge carries: a memory of facts, cut from one language model, in another that was trained apart from it.

    python tools/train_zoo.py build/zoo1 --seed 1 --only hue --only form
    python tools/bridge_evidence.py build/bridges --home recipes/zoo/base --host build/zoo1/base

A memory beside every MLP of HOME learns facts that no language model of the zoo knows (`what is red ?` `star`), with
all else frozen. Then it is grafted into HOST, which has the same words and sizes and was trained from another seed, so
that its channels mean other things: over every kind of bridge, and without any. Asked are the facts, the same behind a
scene in words, and questions about such scenes, which both language models answer by themselves.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import click
from mvm_stages import memory_of
from train_mvm import write_donor
from zoo_base import BATCH, answer_loss, optimizer_of, rate_at, step_on
from zoo_questions import in_words
from zoo_text import BEGIN, UNSEEN, Lesson, conversation, ids_of, padded, told, turn
from zoo_world import COLORS, KINDS, LETTERS, NUMBERS, SHAPES, Asked, new_scene

FACTS = dict(zip([*COLORS, *SHAPES, *LETTERS], [*SHAPES, *LETTERS, *NUMBERS[1:9]], strict=True))
RATE = 2e-3
Say = Callable[[str], None]


def fact(word: str) -> Asked:
    return Asked(f"what is {word} ?", FACTS[word], "fact", frozenset())


def scene(random: Random) -> str:
    """A scene in words of one or two kinds."""
    return " ".join(told(new_scene(random), random.sample(list(KINDS), random.choice((1, 2))), random))


def lesson(random: Random) -> Lesson:
    """Some facts in turn, half of the time behind a scene."""
    begin = [BEGIN, *(ids_of(scene(random)) if random.random() < 0.5 else [])]
    turns = [turn(fact(word)) for word in random.sample(list(FACTS), 4)]
    return begin + [i for ids, _ in turns for i in ids], [UNSEEN] * len(begin) + [i for _, said in turns for i in said]


def teach(home: Path, folder: Path, *, inner: int, steps: int, say: Say) -> None:
    """A memory of the facts for the language model in `home`, written as a donor folder."""
    import torch
    from transformers import LlamaForCausalLM

    from fuse.grafts.slots import slots_of

    torch.manual_seed(0)
    random, language = Random("facts"), LlamaForCausalLM.from_pretrained(home, dtype=torch.float32).eval()
    language.requires_grad_(False)
    graft = memory_of(language.config, inner, "beside")
    graft.attach(slots_of(language))
    optimizer = optimizer_of((list(graft.parameters()), RATE))
    for step in range(1, steps + 1):
        lessons = [lesson(random) for _ in range(BATCH)] + [conversation(random, 3) for _ in range(BATCH // 4)]
        ids, labels = padded(lessons)
        loss, right = answer_loss(language, labels, input_ids=ids)
        step_on(optimizer, loss, rate_at(step, steps))
        if step % 100 == 0:
            say(f"memory of facts: step {step}, {right:.1%} right")
    write_donor(graft, folder, home, "tools/bridge_evidence.py")


def ask(file: Path, each: int) -> None:
    """The questions: every fact alone, the facts behind `each` scenes, and `each` questions about scenes."""
    lines = []
    for number, word in enumerate(FACTS):
        lines.append({"id": f"fact_{number}", "question": fact(word).text, "answer": FACTS[word], "skill": "fact"})
    for number in range(each):
        random = Random(f"test {number}")
        word = random.choice(list(FACTS))
        text = f"{scene(random)} {fact(word).text}"
        lines.append({"id": f"behind_{number}", "question": text, "answer": FACTS[word], "skill": "fact behind a scene"})
        lines.append({"id": f"reading_{number}", **in_words("reading", random), "skill": "reading"})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def rows(home: Path, host: Path) -> dict[str, tuple[Path, str]]:
    """label -> (the language model, its graft's entry; "" for none)."""
    found = {"home": (home, ""), "home + memory": (home, "from: memory"), "host": (host, "")}
    found["host + memory, no bridge"] = (host, "from: memory_without_record")
    for method in ("procrustes", "ridge"):
        bridge = f"from: memory, accept_r2: -100, bridge: {{method: {method}, texts: texts.txt, host: {home}}}"
        found[f"host + memory, {method}"] = (host, bridge)
    found["host + memory, embedding"] = (
        host, f"from: memory, accept_r2: -100, bridge: {{method: embedding, host: {home}}}"
    )  # fmt: skip
    return found


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--home", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--host", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--inner", type=int, default=64, show_default=True, help="Inner size of the memory.")
@click.option("--steps", type=int, default=600, show_default=True)
@click.option("--texts", type=int, default=400, show_default=True, help="Scenes in words that bridges are fitted to.")
@click.option("--each", type=int, default=200, show_default=True, help="Questions of the skills that are drawn.")
def main(out: Path, home: Path, host: Path, inner: int, steps: int, texts: int, each: int) -> None:
    """Train the memory, unless OUT has it, merge every row and ask all of them the same questions."""
    from fuse.cli import main as fuse

    out.mkdir(parents=True, exist_ok=True)
    memory, bare = out / "memory", out / "memory_without_record"
    if not memory.is_dir():
        teach(home, memory, inner=inner, steps=steps, say=click.echo)
    shutil.copytree(memory, bare, dirs_exist_ok=True)
    record = json.loads((bare / "graft.json").read_text())
    record["host"]["embedding"] = None  # so that fuse cannot see that it is of another basis
    (bare / "graft.json").write_text(json.dumps(record))
    random = Random("texts")
    lines = [f"{scene(random)} what is {random.choice(list(FACTS))} ?" for _ in range(texts)]
    (out / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ask(out / "questions.jsonl", each)
    folders = []
    for label, (model, graft) in rows(home.resolve(), host.resolve()).items():
        name = label.replace(" + ", "_").replace(", ", "_").replace(" ", "_")
        file = out / f"{name}.yaml"
        lines = [f"members: {{llm: {model}}}", "language: {method: linear, weights: {llm: 1}}"]
        lines += ["grafts:", f"  - {{name: facts, {graft}}}"] if graft else ["output: {dtype: bfloat16}"]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        fuse(["merge", str(file), str(out / name), "--quiet", "--force"], standalone_mode=False)
        folders.append(str(out / name))
    fuse(["eval", *folders, "--data", str(out / "questions.jsonl"), "--max-tokens", "4"], standalone_mode=False)


if __name__ == "__main__":
    main()
