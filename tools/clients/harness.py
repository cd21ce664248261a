"""Asks a folder the questions of a file through lm-eval or lmms-eval, and compares every answer with `fuse eval`.

    python tools/clients/harness.py out --data questions.jsonl --harness lm-eval --python /path/to/venv/bin/python

The harness runs in a Python of its own. lm-eval's needs no `fuse`: it gets the portable folder, which is exported here.
lmms-eval's has `fuse` installed beside it. Nothing is fetched. Exit code 1 where an answer differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from harness_tasks import CHOICES, HARNESSES, write_task

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--harness", type=click.Choice(HARNESSES), required=True)
@click.option("--python", type=click.Path(exists=True, dir_okay=False), required=True, help="Of the harness.")
@click.option("--max-tokens", type=click.IntRange(1, 8192), default=8, show_default=True)
def main(folder: Path, data: Path, harness: str, python: str, max_tokens: int) -> None:
    """Compare what a harness hears from FOLDER with what `fuse eval` does."""
    config = json.loads((folder / "config.json").read_text())
    sees = "vision_config" in config or config["model_type"] == "fuse"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        how = ["--out", out / "eval", "--max-tokens", max_tokens, "--quiet", "--no-card"]
        run([sys.executable, "-m", "fuse", "eval", folder, "--data", data, *how])
        wanted = by_key(next((out / "eval").glob("*.jsonl")))
        asked = folder.resolve()
        if harness == "lm-eval" and config["model_type"] == "fuse" and "auto_map" not in config:
            run([sys.executable, "-m", "fuse", "export", folder, "--to", "portable", out / "portable"])
            asked = out / "portable"
        heard: dict[str, str] = {}
        for task in write_task(data, out / "task", harness, max_tokens=max_tokens):
            command = COMMANDS[harness](asked, sees=sees, choices=task == CHOICES)
            shown = ["--tasks", task, "--include_path", out / "task", "--output_path", out / task, "--log_samples"]
            run([python, "-m", harness.replace("-", "_"), *command, *shown, "--batch_size", 16])
            lines = (out / "task" / f"{task}.jsonl").read_text().splitlines()
            if not (samples := sorted((out / task).rglob("*samples*.jsonl"))):
                raise SystemExit(f"harness: {harness} wrote no answers to {task}; its words are above")
            heard |= answers(samples[0], [json.loads(line) for line in lines])
    other = [key for key in wanted if heard.get(key) != wanted[key]]
    for key in other[:10]:
        click.echo(f"{key}: fuse eval heard {wanted[key]!r}, {harness} {heard.get(key)!r}")
    click.echo(f"{len(wanted) - len(other)} of {len(wanted)} answers are the same")
    raise SystemExit(bool(other))


def lm_eval(folder: Path, *, sees: bool, choices: bool) -> list[Any]:
    """lm-eval's own words for a folder; with a chat template, as `fuse ask` has it."""
    kind = ["--model", "hf-multimodal" if sees else "hf"]
    template = ["--apply_chat_template"] if (folder / "chat_template.jinja").exists() else []
    return ["run", *kind, "--model_args", f"pretrained={folder},trust_remote_code=True", "--device", "cpu", *template]


def lmms_eval(folder: Path, *, sees: bool, choices: bool) -> list[Any]:
    """lmms-eval's own words for a folder. Its chat tasks know no choices."""
    return ["--model", "fuse", "--model_args", f"pretrained={folder}", *(["--force_simple"] if choices else [])]


COMMANDS = {"lm-eval": lm_eval, "lmms-eval": lmms_eval}


def run(command: list[Any]) -> None:
    """Run a command, with its words on stderr; stop where it fails."""
    words = [str(word) for word in command]
    click.echo(f"$ {' '.join(words)}", err=True)
    done = subprocess.run(words, env={**os.environ, **OFFLINE}, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"harness: exit code {done.returncode} of: {' '.join(words)}")


def by_key(log: Path) -> dict[str, str]:
    """What `fuse eval` heard, by the key of the question."""
    rows = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    return {row["key"]: row["text"] for row in rows}


def answers(samples: Path, lines: list[Mapping[str, Any]]) -> dict[str, str]:
    """What the harness heard, by the key of the question; of choices the one with the smallest loss."""
    found = {}
    for sample in map(json.loads, samples.read_text().splitlines()):
        line, said = lines[sample["doc_id"]], sample["filtered_resps"]
        if line["choices"]:
            losses = [one[0] for one in said]
            found[line["key"]] = line["choices"][losses.index(min(losses))]
        else:
            found[line["key"]] = (said if isinstance(said, str) else said[0]).strip()
    return found


if __name__ == "__main__":
    main()
