"""What a bridge carries: a memory of facts, cut from one language model of the zoo, in others.

    python tools/train_zoo.py build/zoo1 --seed 1 --only hue --only form
    python tools/bridge_evidence.py build/bridges --apart build/zoo1/base

A memory beside every MLP of the base learns facts that no language model of the zoo knows (`what is red ?` `star`),
with all else frozen. Then it is grafted, over every kind of bridge and without any, into

    base turned      the base itself in other orthogonal axes, the same function of words
    expert turned    a fine-tune of the base, 25% of its norm away, in other axes
    apart            a language model of the same words and sizes that was trained from another seed

Asked are the facts, the same behind a scene in words, and questions about such scenes, which all answer by themselves.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import click
from evidence import ZOO
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
        lines.append({"id": f"behind_{number}", "question": text, "answer": FACTS[word], "skill": "fact behind scene"})
        lines.append({"id": f"reading_{number}", **in_words("reading", random), "skill": "reading"})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def turned(folder: Path, out: Path) -> Path:
    """A llama of the zoo with h' = Q h in its residual stream, in float32: gains go into the matrices behind norms."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    size, drawn = (model.config.hidden_size,) * 2, torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(size, generator=drawn, dtype=torch.float64))[0]
    readers = [(model.model.norm, [model.lm_head])]
    for block in model.model.layers:
        readers.append((block.input_layernorm, [getattr(block.self_attn, f"{x}_proj") for x in "qkv"]))
        readers.append((block.post_attention_layernorm, [block.mlp.gate_proj, block.mlp.up_proj]))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ axes.T)
        for norm, modules in readers:
            for module in modules:
                module.weight.copy_(module.weight * norm.weight @ axes.T)
            norm.weight.fill_(1)
        for block in model.model.layers:
            for module in (block.self_attn.o_proj, block.mlp.down_proj):
                module.weight.copy_(axes @ module.weight)
    model.float().save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


def rows(hosts: Mapping[str, Path]) -> dict[str, tuple[Path, str]]:
    """label -> (the language model, its graft's entry; "" for none). hosts: the first is the memory's own."""
    (home, own), *others = hosts.items()
    found = {home: (own, ""), f"{home}, memory": (own, "from: memory")}
    for name, host in others:
        found[name] = (host, "")
        found[f"{name}, no bridge"] = (host, "from: memory_without_record")
        for method in ("procrustes", "ridge", "embedding"):
            texts = "" if method == "embedding" else ", texts: texts.txt"
            bridge = f"from: memory, accept_r2: -100, bridge: {{method: {method}{texts}, host: {own}}}"
            found[f"{name}, {method}"] = (host, bridge)
    return found


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--zoo", type=click.Path(file_okay=False, exists=True, path_type=Path), default=ZOO, show_default=True)
@click.option("--apart", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--inner", type=int, default=64, show_default=True, help="Inner size of the memory.")
@click.option("--steps", type=int, default=150, show_default=True)
@click.option("--texts", type=int, default=400, show_default=True, help="Scenes in words that bridges are fitted to.")
@click.option("--each", type=int, default=100, show_default=True, help="Questions of the skills that are drawn.")
def main(out: Path, zoo: Path, apart: Path, inner: int, steps: int, texts: int, each: int) -> None:
    """Train the memory, unless OUT has it, merge every row and ask all of them the same questions."""
    from fuse.cli import cli

    out.mkdir(parents=True, exist_ok=True)
    memory, bare = out / "memory", out / "memory_without_record"
    if not memory.is_dir():
        teach(zoo / "base", memory, inner=inner, steps=steps, say=click.echo)
    shutil.copytree(memory, bare, dirs_exist_ok=True)
    record = json.loads((bare / "graft.json").read_text())
    record["host"]["embedding"] = None  # so that fuse cannot see that it is of another basis
    (bare / "graft.json").write_text(json.dumps(record))
    random = Random("texts")
    lines = [f"{scene(random)} what is {random.choice(list(FACTS))} ?" for _ in range(texts)]
    (out / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ask(out / "questions.jsonl", each)
    hosts = {"base": (zoo / "base").resolve(), "apart": apart.resolve()}
    for name in ("base", "expert"):
        hosts[f"{name} turned"] = turned(zoo / name, out / f"{name}_turned").resolve()
    folders = []
    for label, (model, graft) in rows(hosts).items():
        name = label.replace(",", "").replace(" ", "_") + "_fused"
        file = out / f"{name}.yaml"
        lines = [f"members: {{llm: {model}}}", "language: {method: linear, weights: {llm: 1}}"]
        lines += ["grafts:", f"  - {{name: facts, {graft}}}"] if graft else []
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        cli.main(["merge", str(file), str(out / name), "--quiet", "--force"], standalone_mode=False)
        folders.append(str(out / name))
    cli.main(["eval", *folders, "--data", str(out / "questions.jsonl"), "--max-tokens", "4"], standalone_mode=False)


if __name__ == "__main__":
    main()
